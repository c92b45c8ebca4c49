"""The checks of `asearch doctor`, one idea a file. A check looks and changes nothing."""
