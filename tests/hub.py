"""A Hugging Face Hub on loopback, as far as publishing and loading go, and a process that talks to it.

The client reads its endpoint when it is imported, so that what is tested runs in a process of its own.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = 'hf_aTokenThatMayWriteTheseRepositories'
LICENSES = ('apache-2.0', 'mit', 'cc-by-nc-4.0', 'other')


@dataclass
class Repo:
    """Branches with their commit and files."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {'main': {'.gitattributes': b'*.safetensors'}}
    )
    commits: list[str] = field(default_factory=list)

    def sha(self, branch: str) -> str:
        return hashlib.sha1(repr(sorted(self.branches[branch].items())).encode()).hexdigest()

    def at(self, revision: str) -> str | None:
        """The branch of that name or commit."""
        return next((name for name in self.branches if revision in (name, self.sha(name))), None)


class Hub(ThreadingHTTPServer):
    """The server; `broken` says how requests that begin so fail, as in `{'PUT /lfs': 'drop'}`.

    `drop` hangs up in the middle, `deaf` does as asked and hangs up, `twice` does as asked and answers as to one
    who asks again, `echo` repeats the token in what it says; a number is the status that it answers with.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.url = f'http://127.0.0.1:{self.server_address[1]}'
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.broken: dict[str, str | int] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, content: Any = b'', **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = 'application/octet-stream' if isinstance(content, bytes) else 'application/json'
        for name, value in {'Content-Type': kind, 'Content-Length': str(len(body)), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def _serve(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        request = f'{self.command} {path}'
        hub.asked.append(request)
        way = next((way for start, way in hub.broken.items() if request.startswith(start)), None)
        if way == 'drop':  # in the middle of what is sent
            self.rfile.read(min(64, int(self.headers.get('Content-Length', 0))))
            self.connection.close()
            self.close_connection = True
            return
        length = self.headers.get('Content-Length')
        body = self.rfile.read(int(length)) if length else self._chunks()
        if isinstance(way, int):
            return self._answer(way, {'error': 'as it was asked to'})
        if way == 'echo':
            return self._answer(400, {'error': f'what is {self.headers["Authorization"]}?'})
        allowed = self.headers.get('Authorization') == f'Bearer {TOKEN}'
        for method, pattern, serve in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                if serve not in PUBLIC and not allowed:
                    return self._answer(401, {'error': 'Invalid credentials'}, X_Error_Message='Invalid credentials')
                status, content, headers = serve(hub, body, allowed, *found.groups())
                if way == 'deaf':  # done, but nobody hears of it
                    self.connection.close()
                    self.close_connection = True
                    return None
                if way == 'twice':
                    return self._answer(412, {'error': 'A commit has happened since'})
                return self._answer(status, content, **headers)
        return self._answer(404, {'error': f'no such page: {request}'})

    def _chunks(self) -> bytes:
        found = b''
        while self.headers.get('Transfer-Encoding') == 'chunked' and (size := int(self.rfile.readline(), 16)):
            found += self.rfile.read(size)
            self.rfile.readline()
        return found

    do_GET = do_POST = do_PUT = do_HEAD = _serve


Reply = tuple[int, Any, dict[str, str]]


def _create(hub: Hub, body: bytes, allowed: bool) -> Reply:
    asked = json.loads(body)
    repo_id = f'{asked["organization"]}/{asked["name"]}'
    if repo_id.startswith('others/'):
        return 403, {'error': 'You have no rights to create a model under the namespace "others"'}, {}
    url = {'url': f'{hub.url}/{repo_id}'}
    if repo_id in hub.repos:
        return 409, {'error': 'You already created this model repo', **url}, {}
    hub.repos[repo_id] = Repo(bool(asked.get('private') or asked.get('visibility') == 'private'))
    return 200, url, {}


def _info(hub: Hub, body: bytes, allowed: bool, repo_id: str, branch: str | None) -> Reply:
    repo = hub.repos.get(repo_id)
    if repo is None or (repo.private and not allowed):
        return 404, {'error': 'Repository not found'}, {'X_Error_Code': 'RepoNotFound'}
    if branch and repo.at(branch) is None:
        return 404, {'error': 'Revision not found'}, {'X_Error_Code': 'RevisionNotFound'}
    branch = repo.at(branch or 'main')
    siblings = []
    for name, data in repo.branches[branch].items():
        file: dict[str, Any] = {'rfilename': name, 'size': len(data), 'blobId': _git(data)}
        if name.endswith(('.safetensors', '.parquet')):
            file |= {'blobId': 'ab' * 20, 'lfs': {'sha256': _sha256(data), 'size': len(data), 'pointerSize': 134}}
        siblings.append(file)
    content = {'id': repo_id, 'sha': repo.sha(branch), 'private': repo.private, 'siblings': siblings}
    return 200, {'_id': 'x', 'tags': [], 'downloads': 0, **content}, {}


def _tree(hub: Hub, body: bytes, allowed: bool, repo_id: str, branch: str, folder: str) -> Reply:
    """What a folder holds."""
    repo, entries = hub.repos[repo_id], {}
    for name, data in repo.branches[repo.at(branch) or 'main'].items():
        above, _, _ = name.rpartition('/')
        if above == folder:
            entries[name] = {'type': 'file', 'path': name, 'size': len(data), 'oid': _git(data)}
        elif above and not folder:
            entries[above] = {'type': 'directory', 'path': above, 'size': 0, 'oid': _git(b'')}
    return (200 if entries else 404), [*entries.values()], {}


def _validate(hub: Hub, body: bytes, allowed: bool) -> Reply:
    """What the Hub checks of a card's metadata, in short."""
    parts = json.loads(body)['content'].split('---\n')
    try:
        data = yaml.safe_load(parts[1])
        wrong = [] if data['license'] in LICENSES else [f'"license" must be one of {list(LICENSES)}']
        for model in data.get('model-index', []):
            for result in model['results']:
                known = [model['name'], result['task']['type'], result['dataset']['type'], result['dataset']['name']]
                known += [metric['type'] for metric in result['metrics']]
                wrong += [] if all(isinstance(each, str) and each for each in known) else ['"model-index" names']
                numbers = [metric['value'] for metric in result['metrics']]
                wrong += [] if all(isinstance(each, float) for each in numbers) else ['"model-index" values']
    except Exception as error:
        wrong = [f'no metadata ({error!r})']
    return (400 if wrong else 200), {'errors': [{'message': each} for each in wrong], 'warnings': []}, {}


def _branch(hub: Hub, body: bytes, allowed: bool, repo_id: str, branch: str) -> Reply:
    branches = hub.repos[repo_id].branches
    if branch in branches:
        return 409, {'error': 'Reference already exists'}, {}
    branches[branch] = dict(branches['main'])
    return 200, {}, {}


def _preupload(hub: Hub, body: bytes, allowed: bool, repo_id: str, branch: str) -> Reply:
    files = [
        {'path': name, 'uploadMode': 'lfs' if name.endswith('.safetensors') else 'regular', 'shouldIgnore': False}
        for name in (file['path'] for file in json.loads(body)['files'])
    ]
    return 200, {'files': files}, {}


def _batch(hub: Hub, body: bytes, allowed: bool, repo_id: str) -> Reply:
    objects: list[dict[str, Any]] = []
    for each in json.loads(body)['objects']:
        actions = (
            {'actions': {'upload': {'href': f'{hub.url}/lfs/{each["oid"]}'}}} if each['oid'] not in hub.stored else {}
        )
        objects.append({'oid': each['oid'], 'size': each['size'], **actions})
    return 200, {'transfer': 'basic', 'objects': objects}, {}


def _store(hub: Hub, body: bytes, allowed: bool, oid: str) -> Reply:
    if _sha256(body) != oid:
        return 400, {'error': 'other bytes than announced'}, {}
    hub.stored[oid] = body
    return 200, {}, {}


def _commit(hub: Hub, body: bytes, allowed: bool, repo_id: str, branch: str) -> Reply:
    repo, lines = hub.repos[repo_id], [json.loads(line) for line in body.splitlines()]
    header = lines[0]['value']
    if header.get('parentCommit') not in (None, repo.sha(branch)):
        return 412, {'error': 'A commit has happened since'}, {}
    files = {}
    for line in lines[1:]:
        value = line['value']
        lfs = line['key'] == 'lfsFile'
        if lfs and value['oid'] not in hub.stored:
            return 400, {'error': 'this LFS object was never uploaded'}, {}
        files[value['path']] = hub.stored[value['oid']] if lfs else base64.b64decode(value['content'])
    repo.branches[branch] |= files
    repo.commits.append(header['summary'])
    oid = repo.sha(branch)
    return 200, {'commitUrl': f'{hub.url}/{repo_id}/commit/{oid}', 'commitOid': oid, 'success': True}, {}


def _resolve(hub: Hub, body: bytes, allowed: bool, repo_id: str, branch: str, name: str) -> Reply:
    repo = hub.repos.get(repo_id)
    if repo is None or (repo.private and not allowed):
        return 404, b'', {'X_Error_Code': 'RepoNotFound'}
    branch = repo.at(branch) or ''
    if name not in repo.branches.get(branch, {}):
        return 404, b'', {'X_Error_Code': 'EntryNotFound'}
    data = repo.branches[branch][name]
    return 200, data, {'X_Repo_Commit': repo.sha(branch), 'ETag': f'"{_sha256(data)}"'}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git(data: bytes) -> str:
    return hashlib.sha1(f'blob {len(data)}\0'.encode() + data).hexdigest()


ID = r'([\w.-]+/[\w.-]+)'
ROUTES: Any = (
    ('POST', '/api/repos/create', _create),
    ('POST', '/api/validate-yaml', _validate),
    ('GET', f'/api/(?:models|datasets)/{ID}(?:/revision/(.+))?', _info),
    ('GET', f'/api/datasets/{ID}/tree/([^/]+)/?(.*)', _tree),
    ('POST', f'/api/models/{ID}/branch/(.+)', _branch),
    ('POST', f'/api/models/{ID}/preupload/(.+)', _preupload),
    ('POST', f'/api/models/{ID}/commit/(.+)', _commit),
    ('POST', rf'/{ID}\.git/info/lfs/objects/batch', _batch),
    ('PUT', r'/lfs/(\w+)', _store),
    ('GET HEAD', f'(?:/datasets)?/{ID}/resolve/([^/]+)/(.+)', _resolve),
)
PUBLIC = {_validate, _info, _tree, _resolve, _store}  # the storage is asked with what the batch gave

CLIENT = """\
import json, os, sys, tempfile, time

time.sleep = lambda seconds: None  # huggingface_hub waits between its attempts
answers = os.fdopen(os.dup(1), 'w')
import timm, torch
from imagenette_zoo.cli.main import main

for line in sys.stdin:
    asked = json.loads(line)
    os.environ.pop('HF_TOKEN', None)
    if asked['token']:
        os.environ['HF_TOKEN'] = asked['token']
    if asked['argv'][0] == 'load':
        model = timm.create_model(asked['argv'][1], pretrained=True).eval()
        with torch.no_grad():
            found = model(torch.linspace(-2, 2, 3 * 32 * 32).view(1, 3, 32, 32))[0].tolist()
        said = {'logits': found, 'labels': model.pretrained_cfg['label_names']}
    else:
        with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            code = main(asked['argv'])
            sys.stdout.flush(), sys.stderr.flush()
            out.seek(0), err.seek(0)
            said = {'code': code, 'out': out.read(), 'err': err.read()}
    print(json.dumps(said), file=answers, flush=True)
"""


class Client:
    """A process with `HF_ENDPOINT`: `client('publish', …)` runs a command, `client('load', NAME)` a model."""

    def __init__(self, hub: Hub, home: Path) -> None:
        root = Path(__file__).parents[1]
        path = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
        own = {'HF_ENDPOINT': hub.url, 'HF_HOME': str(home), 'HF_HUB_DISABLE_XET': '1', 'PYTHONPATH': path}
        self.process = subprocess.Popen(
            [sys.executable, '-c', CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env={**os.environ, 'NO_PROXY': '*', **own},
        )

    def __call__(self, *argv: str, token: str | None = TOKEN) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({'argv': argv, 'token': token}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
