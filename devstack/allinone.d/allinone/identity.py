"""Keystone's entities over its HTTP API, made when they are missing: users, roles, services and endpoints.

Plain HTTP instead of the `openstack` command, because thirty calls of that take a minute.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from .errors import AllInOneError

Json = dict[str, Any]


class Api:
    """JSON over HTTP with a token; one instance an endpoint."""

    def __init__(self, base: str, token: str = '') -> None:
        self._base = base
        self.token = token

    def call(self, method: str, path: str, body: Json | None = None) -> tuple[Json, dict[str, str]]:
        """Body and headers (lower case) of the answer; an error for anything but 2xx."""
        headers = {'Content-Type': 'application/json', 'Accept': 'application/json'}
        if self.token:
            headers['X-Auth-Token'] = self.token
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._base + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                text = response.read()
                head = {key.lower(): value for key, value in response.headers.items()}
                return (json.loads(text) if text else {}), head
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors='replace')[:300]
            raise AllInOneError(f'{method} {self._base}{path}: {error.code} {detail}') from error

    def get(self, path: str) -> Json:
        return self.call('GET', path)[0]

    def post(self, path: str, body: Json) -> Json:
        return self.call('POST', path, body)[0]

    def put(self, path: str) -> None:
        self.call('PUT', path)


def login(keystone_url: str, user: str, password: str, project: str) -> tuple[str, str]:
    """A token for a user of the default domain, and the project's id."""
    default = {'id': 'default'}
    body = {'auth': {
        'identity': {'methods': ['password'],
                     'password': {'user': {'name': user, 'domain': default, 'password': password}}},
        'scope': {'project': {'name': project, 'domain': default}}}}
    answer, headers = Api(keystone_url).call('POST', '/auth/tokens', body)
    return headers['x-subject-token'], answer['token']['project']['id']


class Identity:
    def __init__(self, keystone_url: str, admin_password: str) -> None:
        token, _ = login(keystone_url, 'admin', admin_password, 'admin')
        self._api = Api(keystone_url, token)

    def _ensure(self, kind: str, name: str, extra: Json) -> str:
        """Id of the entity `name` of a collection such as 'users'."""
        known = self._api.get(f'/{kind}?name={name}')[kind]
        if known:
            return str(known[0]['id'])
        single = kind.removesuffix('s')
        return str(self._api.post(f'/{kind}', {single: {'name': name} | extra})[single]['id'])

    def service_user(self, name: str, password: str) -> None:
        """A user of the project `service` with the roles admin, for what it does, and service, which makes the token
        it sends along with a user's count as coming from a service."""
        project = self._ensure('projects', 'service', {'domain_id': 'default'})
        user = self._ensure('users', name, {'domain_id': 'default', 'password': password})
        for role_name in ('admin', 'service'):
            role = self._ensure('roles', role_name, {})
            self._api.put(f'/projects/{project}/users/{user}/roles/{role}')

    def endpoint(self, name: str, kind: str, region: str, url: str) -> None:
        """A service and its public, internal and admin endpoint, all the same."""
        service = self._ensure('services', name, {'type': kind})
        known = self._api.get(f'/endpoints?service_id={service}')['endpoints']
        for interface in ('public', 'internal', 'admin'):
            if not any(one['interface'] == interface and one['url'] == url for one in known):
                self._api.post('/endpoints', {'endpoint': {
                    'service_id': service, 'region_id': region, 'interface': interface, 'url': url}})
