"""Stands in for Neutron: a network API without networks.

Nova asks it for an instance's ports, networks and security groups and is content when there are none. Everything else
that Neutron does is out of the question here, so nothing is ever created: writes are answered 501. Runs by itself:
`python3 network_stub.py PORT`.
"""

from __future__ import annotations

import http.server
import json
import re
import sys

COLLECTION = re.compile(r'^/v2\.0/([a-z-]+)/?(\?.*)?$')


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self) -> None:
        collection = COLLECTION.match(self.path)
        if collection:
            self._answer(200, {collection.group(1).replace('-', '_'): []})
        elif self.path.split('?')[0].rstrip('/') == '':
            link = {'rel': 'self', 'href': f'http://{self.headers["Host"]}/v2.0/'}
            self._answer(200, {'versions': [{'id': 'v2.0', 'status': 'CURRENT', 'links': [link]}]})
        else:
            self._answer(404, {'NeutronError': {'type': 'NotFound', 'message': 'there are no networks here',
                                                'detail': ''}})

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self._answer(501, {'NeutronError': {'type': 'NotImplemented', 'message': 'this cloud has no networks',
                                            'detail': ''}})

    do_POST = do_PUT = do_DELETE = _refuse

    def _answer(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()


if __name__ == '__main__':
    main()
