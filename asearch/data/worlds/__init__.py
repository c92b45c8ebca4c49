"""Generated fictional towns: facts, texts, questions, and a scripted expert."""
