"""A server of archives, for the tests of data/download.py."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves archives by name, notes what is asked for, and misbehaves when told to."""

    def __init__(self, archives: dict[str, bytes], photos: str):
        self.archives, self.asked = dict(archives), []
        self.share = 1.0  # of the photos' archive, after which the server hangs up
        self.may_hang_up = threading.Event()  # before, it falls silent
        self.may_hang_up.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                name = self.path.rsplit("/", 1)[-1]
                outer.asked.append(name)
                if name not in outer.archives:
                    self.send_error(404)
                    return
                content = outer.archives[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                share = outer.share if name == photos else 1
                self.wfile.write(content[: int(len(content) * share)])
                if share < 1:
                    outer.may_hang_up.wait(60)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/release"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.may_hang_up.set()
        self.http.shutdown()
        self.http.server_close()
