"""A recorder on loopback that the real Comet SDK talks to. It is not Comet.

It speaks the endpoints that comet_ml 3.58 calls for experiments, images, assets, metrics and artifacts, keeps
what it is sent, lists it, and fails on request. Its replies are as much as the SDK's own parsers ask for; what
the real service would say to the same request it cannot tell.

    with CometRecorder() as recorder:
        recorder.faults.append(Fault("upload-asset", "lose reply", times=1))
        ...  # COMET_URL_OVERRIDE=recorder.url
        assert recorder.image_ids(key) == [...]

API keys are never kept: headers are not, and bodies are scrubbed.
"""

import gzip
import hashlib
import itertools
import json
import re
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

API_KEY = "CANARYcanary0123456789abc"
"""A key of plausible form that the recorder takes; found anywhere, it was leaked."""

VERSION = "9.9.9"

NO_SUCH_EXPERIMENT, EXISTS, BAD_KEY, NO_SUCH_ARTIFACT, NOT_FINAL, IMAGE_LIMIT = (
    90210,
    90999,
    90212,
    624523,
    90402,
    7000001,
)


@dataclass
class Fault:
    """What goes wrong with requests whose path holds `path`, the next `times` of them or (None) all.

    `hang` answers nothing until the recorder stops; `status` answers with `status` and stores nothing; `slow`
    waits `seconds` first; `lose reply` stores, then drops the connection; `drop` drops it before storing.
    `drip` sends a byte every `seconds`, `flood` zeros until nobody reads on, `bomb` the same packed a thousandfold;
    `drip head` drips a header.
    """

    path: str
    act: Literal["hang", "status", "slow", "lose reply", "drop", "drip", "drip head", "flood", "bomb"]
    status: int = 500
    seconds: float = 0.0
    times: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    met: int = 0
    sent: int = 0


@dataclass
class Asset:
    """One stored file; `data` is empty where the recorder keeps digests only."""

    asset_id: str
    name: str
    kind: str
    step: int | None
    metadata: dict[str, Any] | None
    size: int
    sha256: str
    data: bytes = b""
    context: str | None = None
    artifact_version: str | None = None


@dataclass
class Experiment:
    """What one experiment was sent."""

    key: str
    workspace: str
    project: str
    name: str | None = None
    assets: list[Asset] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class ArtifactVersion:
    """One version of an artifact; `state` is CLOSED once all its files are there."""

    id: str
    artifact_id: str
    workspace: str
    name: str
    kind: str
    version: str
    aliases: list[str]
    tags: list[str]
    metadata: str | None
    experiment: str
    state: str = "OPEN"


@dataclass(frozen=True)
class Request:
    """One request as it was heard, without headers; `query` and `body` are scrubbed of keys."""

    method: str
    path: str
    query: Mapping[str, str]
    body: str
    at: float


class RefusalError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class CometRecorder:
    """A server on 127.0.0.1 in threads of this process; `stop` and `start` are a death and a return.

    `keep_bytes` False keeps a file's SHA-256 and size only; `most_images` is the images an experiment may hold.
    """

    def __init__(self, api_key: str = API_KEY, keep_bytes: bool = True, most_images: int = 100_000) -> None:
        self._api_key, self._keep_bytes, self.most_images = api_key, keep_bytes, most_images
        self.faults: list[Fault] = []
        self.experiments: dict[str, Experiment] = {}
        self.artifacts: list[ArtifactVersion] = []
        self.requests: list[Request] = []
        self.unknown: list[str] = []
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._server: _Server | None = None
        self.port = 0
        self.stopped = threading.Event()

    # Life

    def start(self) -> "CometRecorder":
        """Listen; on the same port again after a stop."""
        self.stopped.clear()
        self._server = _Server(("127.0.0.1", self.port), self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Die: listen no more and drop every connection."""
        if self._server is not None:
            self.stopped.set()
            self._server.shutdown()
            self._server.server_close()
            self._server.drop_connections()
            self._server = None

    def __enter__(self) -> "CometRecorder":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # What a test asks

    @property
    def url(self) -> str:
        """What COMET_URL_OVERRIDE is to be."""
        return f"http://127.0.0.1:{self.port}/clientlib/"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send the SDK here."""
        return {"COMET_API_KEY": self._api_key, "COMET_URL_OVERRIDE": self.url}

    def images(self, key: str) -> list[Asset]:
        """An experiment's images in the order of their arrival; none where there is no such experiment."""
        with self.lock:
            experiment = self.experiments.get(key)
            return [a for a in experiment.assets if a.kind == "image"] if experiment else []

    def image_ids(self, key: str) -> list[str]:
        """The `image_id` in the metadata of each image; '' where there is none."""
        return [str((asset.metadata or {}).get("image_id", "")) for asset in self.images(key)]

    def files(self, key: str) -> dict[str, bytes]:
        """Every other file of an experiment, the last of each name."""
        with self.lock:
            return {a.name: a.data for a in self.experiments[key].assets if a.kind != "image"}

    def heard(self, path: str) -> list[Request]:
        """The requests whose path holds a text."""
        with self.lock:
            return [request for request in self.requests if path in request.path]

    def new_id(self) -> str:
        """A fresh id, 32 hexadecimal digits."""
        return f"{next(self._numbers):032x}"

    def put_artifact(
        self, workspace: str, name: str, version: str, files: Mapping[str, bytes], aliases: Sequence[str] = ()
    ) -> ArtifactVersion:
        """Store a version of an artifact as if it had been logged; it takes its aliases from earlier ones."""
        with self.lock:
            key = self.new_id()
            self.experiments[key] = Experiment(key, workspace, "general")
            body = {
                "experimentKey": key,
                "artifactName": name,
                "artifactType": "dataset",
                "version": version,
                "alias": list(aliases),
            }
            made = self.answer(_REST + "write/artifacts/upsert", {}, body, {})
            query = {"experimentKey": key, "artifactVersionId": made["artifactVersionId"]}
            for path, data in files.items():
                self.store(query, data, "unknown", path, None)
            self.artifacts[-1].state = "CLOSED"
            return self.artifacts[-1]

    # What the handler asks

    def meet(self, path: str) -> list[Fault]:
        """The faults that a request meets."""
        with self.lock:
            met = [f for f in self.faults if f.path in path and (f.times is None or f.met < f.times)]
            for fault in met[:1]:
                fault.met += 1
            return met[:1]

    def note(self, request: Request) -> None:
        """Remember a request."""
        with self.lock:
            self.requests.append(request)

    def scrub(self, text: str) -> str:
        """A text without API keys."""
        text = text.replace(self._api_key, "(key)")
        return re.sub(r'("(?:apiKey|api_key)"\s*:\s*")[^"]*', r"\1(key)", text)

    def authorise(self, given: str | None, path: str) -> None:
        """Refuse another key than the recorder's."""
        if given == self._api_key:
            return
        if path.startswith("api/rest"):
            raise RefusalError(401, 0, "invalid API key")
        raise RefusalError(400, BAD_KEY, "invalid API key")

    def answer(self, path: str, query: dict[str, str], body: Any, files: dict[str, bytes]) -> Any:
        """Store or look up; the result is JSON or bytes. RefusalError where the answer is no."""
        with self.lock:
            for pattern, act in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found:
                    return act(self, query, body, files)
            self.unknown.append(path)
            raise RefusalError(404, 0, f"the recorder does not know {path}")

    def experiment(self, key: str | None) -> Experiment:
        """An experiment by its key."""
        if key is None or key not in self.experiments:
            raise RefusalError(404, NO_SUCH_EXPERIMENT, "no such experiment")
        return self.experiments[key]

    def store(self, query: dict[str, str], data: bytes, kind: str, name: str, metadata: str | None) -> Asset:
        """Keep a file in the experiment that a query names; the same id again replaces it."""
        experiment = self.experiment(query.get("experimentKey") or query.get("experimentId"))
        if kind == "image" and len(self.images(experiment.key)) >= self.most_images:
            raise RefusalError(400, IMAGE_LIMIT, "the limit of images is reached")
        asset = Asset(
            asset_id=query.get("imageId") or query.get("assetId") or self.new_id(),
            name=name,
            kind=kind,
            step=int(query["step"]) if query.get("step") else None,
            metadata=_mapping(metadata),
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            data=data if self._keep_bytes else b"",
            context=query.get("context"),
            artifact_version=query.get("artifactVersionId"),
        )
        experiment.assets = [a for a in experiment.assets if a.asset_id != asset.asset_id]
        experiment.assets.append(asset)
        return asset


def _mapping(text: str | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


# The endpoints: each takes the recorder, the query, the JSON body and the files of a multipart body.

_Query = dict[str, str]
_Files = dict[str, bytes]


def _handshake(r: CometRecorder, experiment: Experiment) -> dict[str, Any]:
    return {
        "runId": experiment.key,
        "project_id": f"{experiment.workspace}/{experiment.project}",
        "focusUrl": f"http://127.0.0.1:{r.port}/{experiment.workspace}/{experiment.project}/",
        "lastOffset": 0,
        "experimentName": experiment.name,
    }


def _add_run(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    key = body["experimentKey"]
    if key in r.experiments:
        if not body.get("getOrCreateEnabled"):
            raise RefusalError(400, EXISTS, "the experiment exists")
    else:
        workspace, project = body.get("teamName") or "default", body.get("projectName") or "general"
        r.experiments[key] = Experiment(key, workspace, project)
    return _handshake(r, r.experiments[key])


def _get_run(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    key = body.get("previousExperiment")
    if key not in r.experiments:
        raise RefusalError(400, NO_SUCH_EXPERIMENT, "no such experiment")
    return _handshake(r, r.experiments[key])


def _status(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    if body.get("experimentKey") in r.experiments:
        r.experiments[body["experimentKey"]].states.append({"isAlive": body.get("is_alive")})
    names = (
        "is_alive_beat_duration",
        "gpu_monitor_interval",
        "cpu_monitor_interval",
        "parameter_update_interval",
    )
    return {f"{name}_millis": 60_000 for name in names}


def _update_status(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    experiment = r.experiment(body.get("experimentKey"))
    experiment.states.append({k: body.get(k) for k in ("isAlive", "hasCrashed")})
    return {}


def _visualization(r: CometRecorder, query: _Query, _: Any, files: _Files) -> Any:
    metadata = files.get("metadata", b"").decode() or None
    return {"imageId": r.store(query, files["file"], "image", query.get("figName", ""), metadata).asset_id}


def _asset(r: CometRecorder, query: _Query, _: Any, files: _Files) -> Any:
    metadata = files.get("metadata", b"").decode() or query.get("metadata")
    kind, name = query.get("type", "asset"), query.get("fileName", "")
    return {"assetId": r.store(query, files["file"], kind, name, metadata).asset_id}


def _batch_metrics(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    experiment = r.experiment(body.get("experimentKey"))
    for value in body.get("values", []):
        experiment.metrics.append({k: value[k] for k in ("metricName", "metricValue", "step")})
    return {}


def _batch_parameters(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    experiment = r.experiment(body.get("experimentKey"))
    for value in body.get("values", []):
        experiment.parameters[value["parameterName"]] = value["parameterValue"]
    return {}


def _metric(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    metric = {k: body.get(k) for k in ("metricName", "metricValue", "step")}
    r.experiment(body["experimentKey"]).metrics.append(metric)
    return {"msg": "ok"}


def _list_metrics(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    wanted = query.get("metricName")
    found = [m for m in r.experiment(query.get("experimentKey")).metrics if wanted in (None, m["metricName"])]
    return {"metrics": [{**m, "metricValue": str(m["metricValue"]), "timestamp": 0} for m in found]}


def _parameter(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    r.experiment(body["experimentKey"]).parameters[body["parameterName"]] = body["parameterValue"]
    return {"msg": "ok"}


def _list_parameters(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    return _summaries(r.experiment(query.get("experimentKey")).parameters)


def _other(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    experiment = r.experiment(body["experimentKey"])
    experiment.others[body["key"]] = body["value"]
    if body["key"] == "Name":
        experiment.name = body["value"]
    return {"msg": "ok"}


def _list_others(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    return _summaries(r.experiment(query.get("experimentKey")).others)


def _summaries(values: Mapping[str, Any]) -> Any:
    return {
        "values": [{"name": k, "valueCurrent": v, "valueMin": v, "valueMax": v} for k, v in values.items()]
    }


def _add_tags(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    experiment = r.experiment(body.get("experimentKey"))
    experiment.tags += [tag for tag in body["addedTags"] if tag not in experiment.tags]
    return {"msg": "ok"}


def _list_tags(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    return {"tags": r.experiment(query.get("experimentKey")).tags}


def _metadata(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    experiment = r.experiment(query.get("experimentKey"))
    return {
        "experimentKey": experiment.key,
        "experimentName": experiment.name,
        "workspaceName": experiment.workspace,
        "projectName": experiment.project,
        "projectId": f"{experiment.workspace}/{experiment.project}",
        "archived": False,
        "running": False,
        "durationMillis": 0,
        "startTimeMillis": 0,
        "endTimeMillis": 0,
    }


def _listed(asset: Asset) -> dict[str, Any]:
    return {
        "assetId": asset.asset_id,
        "fileName": asset.name,
        "fileSize": asset.size,
        "step": asset.step,
        "type": asset.kind,
        "image": asset.kind == "image",
        "metadata": asset.metadata,
        "runContext": asset.context,
        "remote": False,
        "link": None,
        "dir": asset.kind,
    }


def _list_assets(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    wanted = query.get("type", "all")
    assets = r.experiment(query.get("experimentKey")).assets
    return {"assets": [_listed(a) for a in assets if wanted in ("all", a.kind)]}


def _delete_asset(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    experiment = r.experiment(query.get("experimentKey"))
    experiment.assets = [a for a in experiment.assets if a.asset_id != query["assetId"]]
    return {"msg": "ok"}


def _delete_experiment(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    del r.experiments[r.experiment(query.get("experimentKey")).key]
    return {"msg": "ok"}


def _get_asset(r: CometRecorder, query: _Query, _: Any, __: _Files) -> bytes:
    for experiment in r.experiments.values():
        for asset in experiment.assets:
            if asset.asset_id == query["assetId"]:
                return asset.data
    raise RefusalError(404, 0, "no such asset")


def _upsert_artifact(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    experiment = r.experiment(body["experimentKey"])
    same = [a for a in r.artifacts if (a.workspace, a.name) == (experiment.workspace, body["artifactName"])]
    previous = same[-1] if same else None
    version = body.get("version") or (
        f"{int(previous.version.split('.')[0]) + 1}.0.0" if previous else "1.0.0"
    )
    aliases = {"Latest", *(body.get("alias") or ())}
    for each in same:
        each.aliases = [alias for alias in each.aliases if alias not in aliases]
    made = ArtifactVersion(
        id=r.new_id(),
        artifact_id=previous.artifact_id if previous else r.new_id(),
        workspace=experiment.workspace,
        name=body["artifactName"],
        kind=body["artifactType"],
        version=version,
        aliases=sorted(aliases),
        tags=list(body.get("versionTags") or ()),
        metadata=body.get("versionMetadata"),
        experiment=experiment.key,
    )
    r.artifacts.append(made)
    return {
        "artifactId": made.artifact_id,
        "artifactVersionId": made.id,
        "currentVersion": made.version,
        "previousVersion": previous.version if previous else None,
    }


def _artifact_state(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    for version in r.artifacts:
        if version.id == body["artifactVersionId"]:
            version.state = body["state"]
    return {}


def _find_artifact(r: CometRecorder, query: _Query) -> ArtifactVersion:
    name, wanted = unquote(query.get("artifactName", "")), query.get("versionOrAlias")
    for version in reversed(r.artifacts):
        if query.get("versionId"):
            if version.id == query["versionId"]:
                return version
            continue
        if (version.workspace, version.name) != (query.get("workspace") or version.workspace, name):
            continue
        aliases = {alias.lower() for alias in version.aliases}
        version_fits = query.get("version") in (None, "", version.version)
        alias_fits = not query.get("alias") or query["alias"].lower() in aliases
        either_fits = not wanted or wanted == version.version or wanted.lower() in aliases
        if version_fits and alias_fits and either_fits:
            if version.state != "CLOSED":
                raise RefusalError(400, NOT_FINAL, "the artifact version is not final")
            return version
    raise RefusalError(404, NO_SUCH_ARTIFACT, "no such artifact version")


def _artifact_version(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    found = _find_artifact(r, query)
    files = [a for e in r.experiments.values() for a in e.assets if a.artifact_version == found.id]
    return {
        "artifactVersionId": found.id,
        "artifactVersion": found.version,
        "experimentKey": found.experiment,
        "alias": found.aliases,
        "tags": found.tags,
        "metadata": found.metadata,
        "sizeInBytes": sum(each.size for each in files),
        "state": found.state,
        "artifact": {
            "artifactId": found.artifact_id,
            "artifactName": found.name,
            "artifactType": found.kind,
            "workspaceName": found.workspace,
            "tags": [],
        },
    }


def _artifact(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    name = unquote(query.get("artifactName", ""))
    same = [a for a in r.artifacts if (a.workspace, a.name) == (query.get("workspace"), name)]
    if not same:
        raise RefusalError(404, NO_SUCH_ARTIFACT, "no such artifact")
    return {
        "artifactId": same[-1].artifact_id,
        "name": name,
        "type": same[-1].kind,
        "latestVersion": same[-1].version,
        "versions": [
            {"artifactVersionId": a.id, "version": a.version, "alias": a.aliases, "metadata": a.metadata}
            for a in same
        ],
    }


def _artifact_labels(r: CometRecorder, _: _Query, body: Any, __: _Files) -> Any:
    found = next(a for a in r.artifacts if a.id == body["artifactVersionId"])
    given = body.get("alias")
    if given is not None:
        for each in r.artifacts:
            if each.artifact_id == found.artifact_id and each is not found:
                each.aliases = [alias for alias in each.aliases if alias not in given]
        found.aliases = sorted(given)
    return {}


def _artifact_files(r: CometRecorder, query: _Query, _: Any, __: _Files) -> Any:
    found = _find_artifact(r, query)
    files = [a for e in r.experiments.values() for a in e.assets if a.artifact_version == found.id]
    return {
        "files": [
            {
                **_listed(a),
                "artifactVersionId": found.id,
                "metadata": json.dumps(a.metadata) if a.metadata is not None else None,
            }
            for a in files
        ]
    }


def _fixed(reply: Any) -> Any:
    return lambda *_: reply


_REST = "api/rest/v2/"

_ROUTES: Sequence[tuple[str, Any]] = [
    ("clientlib/isAlive/ver", _fixed({"version": VERSION})),
    ("clientlib/logger/add/run", _add_run),
    ("clientlib/logger/get/run", _get_run),
    ("clientlib/status-report/update", _status),
    ("clientlib/visualizations/upload", _visualization),
    ("clientlib/asset/upload", _asset),
    ("clientlib/batch/logger/experiment/metric", _batch_metrics),
    ("clientlib/batch/logger/experiment/parameter", _batch_parameters),
    ("clientlib/tags/add-tags-to-experiment", _add_tags),
    (
        "clientlib/(health/ping|notify/event|asset/3d-limits|log/add|notification/experiment|"
        "status-report/offline-metadata|rpc/.*)",
        _fixed({}),
    ),
    (_REST + "account-details", _fixed({"userName": "tester", "defaultWorkspaceName": "default"})),
    (_REST + "experiment/metadata", _metadata),
    (_REST + "experiment/asset/list", _list_assets),
    (_REST + "experiment/asset/get-asset", _get_asset),
    (_REST + "experiment/metrics/get-(all|metric)", _list_metrics),
    (_REST + "experiment/parameters", _list_parameters),
    (_REST + "experiment/log-other", _list_others),
    (_REST + "experiment/tags", _list_tags),
    (_REST + "write/experiment/upload-asset", _asset),
    (_REST + "write/experiment/asset/delete", _delete_asset),
    (_REST + "write/experiment/delete", _delete_experiment),
    (_REST + "write/experiment/metric", _metric),
    (_REST + "write/experiment/parameter", _parameter),
    (_REST + "write/experiment/log-other", _other),
    (_REST + "write/experiment/tags", _add_tags),
    (_REST + "write/experiment/update-status", _update_status),
    (_REST + "write/artifacts/upsert", _upsert_artifact),
    (_REST + "write/artifacts/state", _artifact_state),
    (_REST + "write/artifacts/version/labels", _artifact_labels),
    (_REST + "artifacts/get", _artifact),
    (_REST + "artifacts/version", _artifact_version),
    (_REST + "artifacts/version/files", _artifact_files),
]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], recorder: CometRecorder) -> None:
        self.recorder = recorder
        self.live: set[Any] = set()
        super().__init__(address, _Handler)

    def drop_connections(self) -> None:
        for connection in list(self.live):
            with _quietly():
                connection.shutdown(2)

    def handle_error(self, *_: Any) -> None:
        """A client that went away is its own business."""


class _quietly:  # noqa: N801  # reads as a word
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, OSError)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer is one packet: two would wait for each other's acknowledgement
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.live.add(self.connection)

    def finish(self) -> None:
        self.server.live.discard(self.connection)
        with _quietly():
            super().finish()

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        recorder = self.server.recorder
        parts = urlsplit(self.path)
        path = parts.path.lstrip("/")
        query = {k: v[-1] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body, files = self._opened(data)
        told = recorder.scrub(json.dumps(body)) if body is not None else ""
        clean = {k: recorder.scrub(v) for k, v in query.items() if k.lower() not in ("apikey", "api_key")}
        recorder.note(Request(self.command, path, clean, told, time.monotonic()))
        faults = recorder.meet(path)
        for fault in faults:
            if fault.act == "hang":
                recorder.stopped.wait()
                return self._drop()
            if fault.act == "drop":
                return self._drop()
            if fault.act == "slow":
                recorder.stopped.wait(fault.seconds)
            if fault.act in ("drip", "drip head", "flood", "bomb"):
                return self._never_end(fault)
            if fault.act == "status":
                return self._reply(
                    fault.status, {"msg": "as the test asks", "code": fault.status}, fault.headers
                )
        try:
            given = self.headers.get("Authorization") or (body or {}).get("apiKey")
            if not path.endswith("isAlive/ver"):
                recorder.authorise(given, path)
            reply = recorder.answer(path, query, body, files)
        except RefusalError as refusal:
            return self._reply(refusal.status, {"msg": str(refusal), "sdk_error_code": refusal.code})
        if any(fault.act == "lose reply" for fault in faults):
            return self._drop()
        return self._reply(200, reply)

    def _opened(self, data: bytes) -> tuple[Any, dict[str, bytes]]:
        """The JSON body, and the parts of a multipart one."""
        kind = self.headers.get("Content-Type", "")
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        if kind.startswith("multipart/"):
            return None, dict(_parts(kind, data))
        try:
            return (json.loads(data) if data else None), {}
        except ValueError:
            return None, {}

    def _never_end(self, fault: Fault) -> None:
        """Answer until the other side or the recorder has had enough; `fault.sent` is how much that was."""
        piece, head = b" " * 65_536, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        packer = zlib.compressobj(9, wbits=31)
        if fault.act == "bomb":
            head += b"Content-Encoding: gzip\r\n"
        head += b"X-Long: " if fault.act == "drip head" else b"Content-Length: 9000000000\r\n\r\n"
        with suppress(OSError):
            self.connection.sendall(head)
            while not self.server.recorder.stopped.is_set():
                if fault.act.startswith("drip"):
                    self.server.recorder.stopped.wait(fault.seconds)
                    self.connection.sendall(b" ")
                    fault.sent += 1
                    continue
                sent = piece if fault.act == "flood" else packer.compress(piece * 100)
                self.connection.sendall(sent)
                fault.sent += len(sent)
        self.close_connection = True

    def _drop(self) -> None:
        self.close_connection = True
        with _quietly():
            self.connection.shutdown(2)

    def _reply(self, status: int, reply: Any, headers: Mapping[str, str] | None = None) -> None:
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        kind = "application/octet-stream" if isinstance(reply, bytes) else "application/json"
        self.send_response(status)
        for name, value in {
            **(headers or {}),
            "Content-Type": kind,
            "Content-Length": str(len(data)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


def _parts(kind: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each part of a multipart body, found by its boundary and not decoded."""
    boundary = re.search(r'boundary="?([^";]+)"?', kind)
    assert boundary is not None
    for part in data.split(b"--" + boundary[1].encode())[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = BytesParser(policy=HTTP).parsebytes(head + b"\r\n\r\n")["Content-Disposition"].params["name"]
        yield name, content.removesuffix(b"\r\n")
