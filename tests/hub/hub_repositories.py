"""What a Hub keeps: users, and repositories with their commits, branches and large files. No HTTP."""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

LARGE_ENDINGS = (".bin", ".safetensors", ".pt", ".npy", ".onnx")
LARGE_SIZE = 10 * 1024 * 1024


class HubError(Exception):
    """A refusal, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if code is not None:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class File:
    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """What the client compares with its own file: SHA-256 of a large file, git's blob name of any other."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    def describe(self, path: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.large:
            entry["lfs"] = {"oid": self.oid, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    files: dict[str, File]
    parent: "Commit | None"
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

    def history(self) -> Iterator["Commit"]:
        """This commit and all before it, newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


class Repository:
    """One model repository; it begins with a commit of its own, as on the Hub."""

    def __init__(self, repo_id: str, private: bool) -> None:
        self.repo_id, self.private = repo_id, private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, Commit] = {}
        self.tags: dict[str, Commit] = {}
        self.large_files: dict[str, bytes] = {}
        """Uploaded content by its SHA-256, whether a commit names it or not."""
        self.announced: set[str] = set()
        """SHA-256 of what clients have said they will upload."""
        attributes = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE_ENDINGS)
        self._append("main", "initial commit", "", {".gitattributes": File(attributes.encode(), large=False)})

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a commit id.

        Raises:
            HubError: 404, no such revision.
        """
        for known in (self.branches, self.tags, self.commits):
            if revision in known:
                return known[revision]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def file(self, revision: str, path: str) -> tuple[Commit, File]:
        """Raises [`HubError`] 404: no such revision, or no such file in it."""
        commit = self.at(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
        return commit, commit.files[path]

    def commit(self, branch: str, operations: list[dict[str, Any]]) -> Commit:
        """Appends one commit to a branch: all of its operations, or, if one is refused, none.

        Args:
            branch: its name.
            operations: the lines of the request, `{"key": ..., "value": ...}`.

        Raises:
            HubError: no such branch; another commit came first; a large file was never uploaded; nothing to delete.
        """
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head, title, message = self.branches[branch], "", ""
        files = dict(head.files)
        for operation in operations:
            key, value = operation["key"], operation["value"]
            if key == "header":
                title, message = value["summary"], value.get("description", "")
                if value.get("parentCommit") not in (None, head.oid):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), large=False)
            elif key == "lfsFile":
                if value["oid"] not in self.large_files:
                    raise HubError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = File(self.large_files[value["oid"]], large=True)
            elif key in ("deletedFile", "deletedFolder"):
                gone = value["path"]
                doomed = [path for path in files if path == gone or path.startswith(gone.rstrip("/") + "/")]
                if not doomed:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                for path in doomed:
                    del files[path]
            else:
                raise HubError(400, f"Unknown operation {key}")
        return self._append(branch, title, message, files)

    def describe(self, revision: str, sizes: bool) -> dict[str, Any]:
        """What the API says of the repository at a revision."""
        commit = self.at(revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        for sibling in siblings if sizes else []:
            entry = commit.files[sibling["rfilename"]].describe(sibling["rfilename"])
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                sibling["lfs"] = {"sha256": entry["oid"], "size": entry["size"], "pointerSize": 134}
        return {
            "id": self.repo_id,
            "author": self.repo_id.split("/")[0],
            "sha": commit.oid,
            "private": self.private,
            "lastModified": commit.date,
            "tags": [],
            "siblings": siblings,
        }

    def _append(self, branch: str, title: str, message: str, files: dict[str, File]) -> Commit:
        parent = self.branches.get(branch)
        name = f"{self.repo_id} {parent and parent.oid} {len(self.commits)} {title}"
        commit = Commit(hashlib.sha1(name.encode()).hexdigest(), title, message, files, parent)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit
        return commit


def upload_mode(path: str, size: int, sample: bytes) -> str:
    """Whether a file goes into the commit itself (`"regular"`) or into the large file storage (`"lfs"`)."""
    return "lfs" if path.endswith(LARGE_ENDINGS) or size > LARGE_SIZE or b"\0" in sample else "regular"


class Repositories:
    """All that a Hub knows."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.repositories: dict[str, Repository] = {}

    def add_user(self, name: str) -> str:
        """Opens an account; returns its token."""
        token = f"hf_{name}"
        self.users[token] = name
        return token
