"""What keeps the page safe: strict headers on every answer, loopback names only, and nothing that changes anything."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from asearch.errors import AsearchError, BusError, ConfigError, InputError

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
EXPORT_CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """A signal handler: the headers of every answer, feeds included. An answer's own policy, as an export has one, stays."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse names that are not loopback's (a page elsewhere could have its own name resolve to us), and all but reading."""
    name = request.host.rpartition(":")[0] if request.host.rpartition(":")[2].isdecimal() else request.host
    if name not in LOOPBACK_NAMES:
        return problem(403, f"this page is served to {', '.join(LOOPBACK_NAMES)} only, not to {name!r}")
    if request.method not in ("GET", "HEAD"):
        return problem(405, "this page is read only")
    try:
        return await handler(request)
    except ConfigError as error:
        return problem(400, str(error))
    except InputError as error:
        return problem(404, str(error))
    except BusError as error:
        return problem(503, f"the broker does not answer: {error}")
    except TimeoutError:
        return problem(503, "the broker does not answer in time")
    except AsearchError as error:
        return problem(500, str(error))


def problem(status: int, message: str) -> web.Response:
    """An error as JSON."""
    return web.json_response({"error": message}, status=status)
