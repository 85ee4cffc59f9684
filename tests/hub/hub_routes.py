"""What the loopback Hub answers, route by route."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from hub_repositories import Commit, HubError, Repositories, Repository, upload_mode


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """What a route sees of a request, and who sent it."""

    hub: Repositories
    url: str
    """Of the Hub itself, for the addresses that it hands out."""
    headers: dict[str, str]
    query: dict[str, list[str]]
    body: bytes
    user: str | None

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        """Raises [`HubError`]: it is not there, or not for this user; who may not see it cannot tell which."""
        found = self.hub.repositories.get(repo_id)
        owns = repo_id.split("/")[0] == self.user
        if found is None or (found.private and not owns):
            raise HubError(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        if write and not owns:
            status = 401 if self.user is None else 403
            raise HubError(status, f"You do not have the rights to write to {repo_id}")
        return found


Route = Callable[..., Answer]
_ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def answer(method: str, path: str, request: Request) -> Answer:
    """What the Hub says: the answer of the first route that fits, or a refusal."""
    path = path.replace("/api/datasets/", "/api/models/datasets/", 1)
    try:
        for known_method, pattern, route in _ROUTES:
            match = pattern.fullmatch(path)
            if match and known_method == ("GET" if method == "HEAD" else method):
                return route(request, *(unquote(part) for part in match.groups()))
        raise HubError(404, f"This Hub has no {method} {path}")
    except HubError as error:
        return refusal(error)


def refusal(error: HubError) -> Answer:
    refused = _json({"error": error.message}, error.status)
    refused.headers |= {**error.headers, "X-Error-Message": error.message}
    return refused


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})


def _route(method: str, pattern: str) -> Callable[[Route], Route]:
    """`{}` in a pattern is one part of a path (a revision comes quoted), `{repo}` two, `{path}` any number.

    A repository of data is named `datasets/owner/name` here, as it is in addresses.
    """
    for name, expression in (("{repo}", "((?:datasets/)?[^/]+/[^/]+)"), ("{path}", "(.+)"), ("{}", "([^/]+)")):
        pattern = pattern.replace(name, expression)

    def add(route: Route) -> Route:
        _ROUTES.append((method, re.compile(pattern), route))
        return route

    return add


@_route("GET", "/api/whoami-v2")
def _whoami(request: Request) -> Answer:
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    access = {"accessToken": {"displayName": "test", "role": "write"}}
    return _json({"type": "user", "name": request.user, "orgs": [], "auth": access})


@_route("POST", "/api/repos/create")
def _create(request: Request) -> Answer:
    wanted = request.json
    namespace = wanted.get("organization") or request.user
    if request.user is None or namespace != request.user:
        raise HubError(403 if request.user else 401, f"You don't have the rights to create a model under {namespace}")
    if wanted.get("type") not in (None, "model"):
        raise HubError(400, "This Hub keeps models only")
    repo_id = f"{namespace}/{wanted['name']}"
    answer = {"url": f"{request.url}/{repo_id}", "name": repo_id}
    if repo_id in request.hub.repositories:
        return _json({"error": "You already created this model repo", **answer}, 409)
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    request.hub.repositories[repo_id] = Repository(repo_id, private)
    return _json(answer)


@_route("DELETE", "/api/repos/delete")
def _delete(request: Request) -> Answer:
    wanted = request.json
    repository = request.repository(f"{wanted.get('organization') or request.user}/{wanted['name']}", write=True)
    del request.hub.repositories[repository.repo_id]
    return _json({})


@_route("GET", "/api/models/{repo}")
def _info(request: Request, repo_id: str, revision: str = "main") -> Answer:
    return _json(request.repository(repo_id).describe(revision, sizes="blobs" in request.query))


@_route("GET", "/api/models/{repo}/revision/{}")
def _info_at(request: Request, repo_id: str, revision: str) -> Answer:
    return _info(request, repo_id, revision)


@_route("GET", "/api/models/{repo}/tree/{}")
def _tree(request: Request, repo_id: str, revision: str, folder: str = "") -> Answer:
    commit = request.repository(repo_id).at(revision)
    start = f"{folder.strip('/')}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in sorted(commit.files.items()):
        if not path.startswith(start):
            continue
        parts = path.removeprefix(start).split("/")
        for depth in range(1, len(parts)):
            name = start + "/".join(parts[:depth])
            entries.setdefault(name, {"type": "directory", "path": name, "size": 0, "oid": "0" * 40})
        entries[path] = file.describe(path)
    if start and not entries:
        raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound", X_Repo_Commit=commit.oid)
    recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    return _json([e for e in entries.values() if recursive or "/" not in e["path"].removeprefix(start)])


@_route("GET", "/api/models/{repo}/tree/{}/{path}")
def _tree_below(request: Request, repo_id: str, revision: str, folder: str) -> Answer:
    return _tree(request, repo_id, revision, folder)


@_route("POST", "/api/models/{repo}/paths-info/{}")
def _paths(request: Request, repo_id: str, revision: str) -> Answer:
    files = request.repository(repo_id).at(revision).files
    wanted = parse_qs(request.body.decode()).get("paths", [])
    return _json([files[path].describe(path) for path in wanted if path in files])


@_route("GET", "/api/models/{repo}/refs")
def _refs(request: Request, repo_id: str) -> Answer:
    repository = request.repository(repo_id)

    def names(kind: str, commits: dict[str, Commit]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c.oid} for n, c in commits.items()]

    branches, tags = names("heads", repository.branches), names("tags", repository.tags)
    return _json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@_route("GET", "/api/models/{repo}/commits/{}")
def _commits(request: Request, repo_id: str, revision: str) -> Answer:
    authors = [{"user": repo_id.split("/")[0]}]
    return _json(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": authors,
            }
            for commit in request.repository(repo_id).at(revision).history()
        ]
    )


@_route("POST", "/api/models/{repo}/branch/{}")
def _branch(request: Request, repo_id: str, name: str) -> Answer:
    repository = request.repository(repo_id, write=True)
    if name in repository.branches:
        raise HubError(409, f"Reference already exists: {name}")
    repository.branches[name] = repository.at(request.json.get("startingPoint", "main"))
    return _json({})


@_route("POST", "/api/models/{repo}/tag/{}")
def _tag(request: Request, repo_id: str, revision: str) -> Answer:
    repository, name = request.repository(repo_id, write=True), request.json["tag"]
    if name in repository.tags:
        raise HubError(409, f"Tag already exists: {name}")
    repository.tags[name] = repository.at(revision)
    return _json({})


@_route("POST", "/api/validate-yaml")
def _validate(request: Request) -> Answer:
    """The header of a model card: absent is a warning, unreadable an error."""
    header = re.match(r"\s*---\r?\n(.*?)\r?\n---", request.json["content"], re.DOTALL)
    if header is None:
        return _json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        metadata = yaml.safe_load(header.group(1))
        problem = None if isinstance(metadata, dict) else "the metadata are not a mapping"
    except yaml.YAMLError as error:
        problem = str(error)
    return _json({"errors": [{"message": problem}] if problem else [], "warnings": []}, 400 if problem else 200)


@_route("POST", "/api/models/{repo}/preupload/{}")
def _preupload(request: Request, repo_id: str, revision: str) -> Answer:
    files = request.repository(repo_id, write=True).at(revision).files
    answers = []
    for wanted in request.json["files"]:
        mode = upload_mode(wanted["path"], wanted["size"], base64.b64decode(wanted["sample"]))
        answer = {"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False}
        if wanted["path"] in files:
            answer["oid"] = files[wanted["path"]].oid
        answers.append(answer)
    return _json({"files": answers})


@_route("POST", "/{repo}.git/info/lfs/objects/batch")
def _lfs_batch(request: Request, repo_id: str) -> Answer:
    repository = request.repository(repo_id, write=True)
    objects = []
    for wanted in request.json["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in repository.large_files:
            repository.announced.add(wanted["oid"])
            place = f"{request.url}/{repo_id}/large-files/{wanted['oid']}"
            answer["actions"] = {"upload": {"href": place}, "verify": {"href": place}}
        objects.append(answer)
    return _json({"transfer": "basic", "objects": objects})


@_route("PUT", "/{repo}/large-files/{}")
def _lfs_upload(request: Request, repo_id: str, oid: str) -> Answer:
    """Without a token, as the client sends none to a storage: who knows the address may upload what was announced."""
    repository = request.hub.repositories.get(repo_id)
    if repository is None or oid not in repository.announced:
        raise HubError(403, "The upload of this file was not announced")
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, "The content is not what its SHA-256 says")
    repository.large_files[oid] = request.body
    return Answer()


@_route("POST", "/{repo}/large-files/{}")
def _lfs_verify(request: Request, repo_id: str, oid: str) -> Answer:
    content = request.repository(repo_id, write=True).large_files.get(oid)
    if content is None or len(content) != request.json["size"]:
        raise HubError(404, "The file was not uploaded")
    return _json({})


@_route("POST", "/api/models/{repo}/commit/{}")
def _commit(request: Request, repo_id: str, branch: str) -> Answer:
    operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    commit = request.repository(repo_id, write=True).commit(branch, operations)
    url = f"{request.url}/{repo_id}/commit/{commit.oid}"
    return _json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})


@_route("GET", "/{repo}/resolve/{}/{path}")
def _resolve(request: Request, repo_id: str, revision: str, path: str) -> Answer:
    commit, file = request.repository(repo_id).file(revision, path)
    headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if file.large:
        headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
    # a cut download goes on from the byte that it had reached
    start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if start is None:
        return Answer(file.content, 200, headers)
    first, size = int(start.group(1)), len(file.content)
    return Answer(file.content[first:], 206, {**headers, "Content-Range": f"bytes {first}-{size - 1}/{size}"})
