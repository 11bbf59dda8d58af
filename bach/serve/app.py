"""The routes of the service: what is asked and answered, in which form."""

import asyncio
import importlib.resources
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, parse_qsl

import jinja2
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import RedirectResponse, Response

from bach.core.errors import InputError
from bach.serve.figures import CONTENT_TYPE
from bach.serve.forms import TooLargeError, TooSlowError, read_body, received
from bach.serve.guard import COOKIE, Guard, refused
from bach.serve.jobs import FINISHED, Job
from bach.serve.service import INPUT, OUTPUT, BusyError, Service, predictions
from bach.tasks import task

VERSION = "1.0.0"

_ASSETS = {
    "serve.css": "bach.serve",
    "serve.js": "bach.serve",
    "docs.js": "bach.serve",
    "swagger-ui-bundle.js": "bach.serve",
    "swagger-ui.css": "bach.serve",
    "report.css": "bach.report",
}
_MB, _GB = 2**20, 2**30
_SMALL = 100_000  # bytes of a request that holds words alone


class Metadata(BaseModel):
    """What /model/metadata says."""

    id: str
    name: str
    description: str
    type: str
    source: str
    license: str


class Prediction(BaseModel):
    """What a photo is taken for: mean over its patches and over the models."""

    label_id: str
    label: str
    probability: float


class Predictions(BaseModel):
    """What /model/predict answers, highest probability first."""

    status: str
    predictions: list[Prediction]


class Problem(BaseModel):
    """What went wrong."""

    status: str
    message: str


class JobStatus(BaseModel):
    """A slide job; `results` has addresses once it is finished."""

    id: str
    slide: str
    mpp: float | None
    state: str
    message: str
    created: str
    begun: str | None
    ended: str | None
    batches: int | None
    results: dict[str, str]


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": told}
    for code, told in {
        400: "what was sent cannot be used",
        401: "a token is needed",
        413: "too much was sent",
        429: "too many wait: ask again after Retry-After seconds",
    }.items()
}


def make_app(service: Service, token: str | None) -> Guard:
    """The service as an ASGI application.

    Args:
        service: What answers; its `start` is called by whoever runs the application.
        token: What whoever asks must send; None where nobody needs one.
    """
    app = FastAPI(
        title=f"bach: {task().title}",
        version=VERSION,
        description="A research tool, not a medical device.",
        docs_url=None,  # it would load from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    guard = Guard(app, token, service.options.loopback, service.figures)
    _add_pages(app, service, guard)
    _add_photos(app, service)
    _add_protocol(app, service)
    _add_inference(app, service)
    _add_slides(app, service)
    _add_jobs(app, service)
    _add_results(app, service)
    _add_errors(app)
    return guard


# Pages


def _add_pages(app: FastAPI, service: Service, guard: Guard) -> None:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("bach.serve"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )

    def page(template: str, status: int = 200, **values: object) -> HTMLResponse:
        return HTMLResponse(templates.get_template(template).render(values), status)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        if request.scope.get("unknown"):
            return page("login.html", 401, wrong=False)
        colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in task().colors]
        slides = await asyncio.to_thread(service.slides)
        return page(
            "index.html",
            classes=list(zip(task().classes, colors, strict=True)),
            task=task(),
            models=len(service.models.sources),
            whole=service.models.whole,
            photo_mb=service.options.photo_mb,
            has_root=service.root is not None,
            slides=slides,
        )

    @app.post("/login", include_in_schema=False)
    async def login(request: Request) -> Response:
        body = await read_body(request, _SMALL)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        if not guard.is_token(given.strip()):
            await asyncio.sleep(0.5)  # guessing is to take its time
            return page("login.html", 401, wrong=True)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, guard.session, httponly=True, samesite="strict", secure=secure)
        return answer

    @app.get("/assets/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404, "There is no such file.")
        with importlib.resources.as_file(importlib.resources.files(_ASSETS[name])) as place:
            return FileResponse(place / "assets" / name, headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html")

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures in the text format of Prometheus."""
        text = service.figures.text(service.gauges())
        return Response(text, media_type=CONTENT_TYPE)


# Photos, as IBM's Model Asset eXchange asks


def _form(field: str, told: str, *others: str) -> dict[str, Any]:
    """What /docs says of a form with a file."""
    file = {"type": "string", "format": "binary", "description": told}
    more = {"mpp": {"type": "string", "description": "um per px, where it must be stated"}}
    more |= {name: {"type": "string"} for name in others}
    schema = {"type": "object", "properties": {field: file, **more}}
    if not others:
        schema["required"] = [field]
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}}}


def _add_photos(app: FastAPI, service: Service) -> None:
    limit = int(service.options.photo_mb * _MB)

    @app.get("/model/metadata", tags=["model"], response_model=Metadata)
    async def metadata() -> dict[str, str]:
        """What the model is."""
        how = "the photo as a whole" if service.models.whole else "the mean over its patches"
        count = len(service.models.sources)
        return {
            "id": service.options.name,
            "name": f"{service.options.name} Keras Model",
            "description": (
                f"Classes {', '.join(task().classes)} of H&E stained breast histology: {how}, by "
                f"{count} model{'s' if count > 1 else ''}. A research tool, not a medical device."
            ),
            "type": "image_classification",
            "source": "https://doi.org/10.1007/978-3-319-93000-8_106",
            "license": "MIT; that of the weights is their owner's to say",
        }

    @app.post(
        "/model/predict",
        tags=["model"],
        response_model=Predictions,
        responses=_PROBLEMS,
        openapi_extra=_form("image", "a photo: TIFF, PNG or JPEG of 8-bit RGB"),
    )
    async def predict(request: Request) -> dict[str, Any]:
        """The class of a photo: the mean over its patches and over the models."""
        async with service.admitted():
            async with received(request, "image", service.incoming, limit) as (form, path):
                if form.filename is None:
                    raise InputError(
                        "A photo must be sent in the field image.\n"
                        f"Received: {', '.join(form.fields) or 'an empty form'}.\n"
                        "With curl: -F image=@FILE."
                    )
                mpp = form.fields.get("mpp", "")
                inputs = await service.photo_inputs(path, form.filename, mpp)
            probs = await _unless_gone(request, service.predict(inputs))
        return {"status": "ok", "predictions": predictions(probs)}


async def _unless_gone(request: Request, work: Awaitable) -> Any:
    """The result of work, which is given up when the client goes away."""
    task = asyncio.ensure_future(work)

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.5)
        task.cancel()

    watch = asyncio.create_task(gone())
    try:
        return await task
    except asyncio.CancelledError:
        if await request.is_disconnected():
            raise HTTPException(499, "Nobody waits for the answer.") from None
        raise
    finally:
        watch.cancel()


# The Open Inference Protocol, version 2


def _check_name(service: Service, name: str) -> None:
    if name != service.options.name:
        raise HTTPException(404, f"There is no model {name!r:.100}.")


def _add_protocol(app: FastAPI, service: Service) -> None:
    @app.get("/v2", tags=["inference protocol"])
    async def server() -> dict[str, Any]:
        """What the server is."""
        return {"name": "bach.serve", "version": VERSION, "extensions": []}

    @app.get("/v2/health/live", tags=["inference protocol"])
    async def live() -> dict[str, bool]:
        """Whether the server answers."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=["inference protocol"])
    async def ready() -> Response:
        """Whether the model can be asked."""
        return JSONResponse({"live": True, "ready": service.ready}, 200 if service.ready else 503)

    @app.get("/v2/models/{name}", tags=["inference protocol"])
    async def model(name: str) -> dict[str, Any]:
        """What the model takes and gives."""
        _check_name(service, name)
        sides = [side or -1 for side in service.models.input_shape]
        shapes = {INPUT: ("UINT8", [-1, *sides, 3]), OUTPUT: ("FP32", [-1, task().count])}
        told = {
            key: [{"name": key, "datatype": shapes[key][0], "shape": shapes[key][1]}]
            for key in (INPUT, OUTPUT)
        }
        return {
            "name": name,
            "platform": service.platform,
            "inputs": told[INPUT],
            "outputs": told[OUTPUT],
        }

    @app.get("/v2/models/{name}/ready", tags=["inference protocol"])
    async def model_ready(name: str) -> Response:
        """Whether this model can be asked."""
        _check_name(service, name)
        told = {"name": name, "ready": service.ready}
        return JSONResponse(told, 200 if service.ready else 503)


def _add_inference(app: FastAPI, service: Service) -> None:
    limit = int(service.options.photo_mb * _MB)
    body = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}

    @app.post("/v2/models/{name}/infer", tags=["inference protocol"], openapi_extra=body)
    async def infer(name: str, request: Request) -> dict[str, Any]:
        """Probabilities of each patch: the mean over the models."""
        _check_name(service, name)
        async with service.admitted():
            inputs, id = await service.tensor_inputs(await read_body(request, limit))
            probs = (await _unless_gone(request, service.predict(inputs))).mean(axis=0)
        output = {
            "name": OUTPUT,
            "shape": list(probs.shape),
            "datatype": "FP32",
            "data": probs.ravel().tolist(),
        }
        told = {} if id is None else {"id": id}
        return {"model_name": name, **told, "outputs": [output]}


# Slides


def _find(service: Service, id: str) -> Job:
    job = service.jobs.get(id)
    if job is None:
        raise HTTPException(404, "There is no such job.")
    return job


def _finished(service: Service, id: str) -> Job:
    job = _find(service, id)
    if job.state != FINISHED:
        raise HTTPException(409, f"This job is {job.state}, and has no results.")
    return job


def _told(service: Service, job: Job, status: int = 200) -> JSONResponse:
    headers = {"Location": f"/jobs/{job.id}"} if status == 202 else None
    return JSONResponse(service.about(job), status, headers)


def _add_slides(app: FastAPI, service: Service) -> None:
    limit = int(service.options.slide_gb * _GB)

    @app.get("/slides", tags=["slides"])
    async def slides() -> dict[str, list[str]]:
        """The slides that lie at hand, by the path that POST /slides takes."""
        return {"slides": await asyncio.to_thread(service.slides)}

    @app.post(
        "/slides",
        tags=["slides"],
        status_code=202,
        response_model=JobStatus,
        responses=_PROBLEMS,
        openapi_extra=_form("slide", "a slide that is uploaded", "path"),
    )
    async def add(request: Request) -> Response:
        """Queue a slide: `path` below the folder of slides, or the file itself in `slide`."""
        service.require_slides()
        kind = request.headers.get("content-type", "")
        if not kind.startswith("multipart/"):
            path, mpp = _named(await read_body(request, _SMALL), "json" in kind)
            job = await asyncio.to_thread(service.add_below, path, mpp)
            return _told(service, job, 202)
        stated = request.headers.get("content-length", "")
        if stated.isdigit() and int(stated) <= limit:
            service.require_room(int(stated))
        async with received(request, "slide", service.incoming, limit) as (form, file):
            mpp, path = form.fields.get("mpp", ""), form.fields.get("path", "")
            if form.filename:
                work = asyncio.to_thread(service.add_upload, file, form.filename, mpp)
            else:
                work = asyncio.to_thread(service.add_below, path, mpp)
            return _told(service, await work, 202)


def _add_jobs(app: FastAPI, service: Service) -> None:
    @app.get("/jobs", tags=["slides"], response_model=list[JobStatus])
    async def jobs(limit: Annotated[int, Query(ge=1, le=100_000)] = 200) -> Response:
        """Slide jobs, the newest first."""
        found = await asyncio.to_thread(service.jobs.newest, limit)
        return JSONResponse(await asyncio.to_thread(lambda: [service.about(one) for one in found]))

    @app.get("/jobs/{id}", tags=["slides"], response_model=JobStatus)
    async def job(id: str) -> Response:
        """A slide job."""
        return _told(service, _find(service, id))

    @app.delete("/jobs/{id}", tags=["slides"])
    async def delete(id: str) -> Response:
        """Cancel a job. Of one that has ended, all files are removed, and what is known of it."""
        left = await asyncio.to_thread(service.delete, _find(service, id))
        return Response(status_code=204) if left is None else _told(service, left)


def _add_results(app: FastAPI, service: Service) -> None:
    @app.get("/jobs/{id}/report", include_in_schema=False)
    async def report(id: str) -> Response:
        return RedirectResponse(f"/jobs/{_find(service, id).id}/report/")

    @app.get("/jobs/{id}/report/{below:path}", tags=["slides"])
    async def page(id: str, below: str = "") -> Response:
        """The pages of a finished job, with the viewer of the slide."""
        path = service.page(_finished(service, id), below)
        if path is None:
            raise HTTPException(404, "The report has no such page.")
        return FileResponse(path, headers={"Cache-Control": "private, no-cache"})

    @app.get("/jobs/{id}/{what}", tags=["slides"])
    async def result(id: str, what: str) -> Response:
        """A result of a finished job: heatmap.png, class_map.png, probs.npy and others."""
        path: Path | None = service.result(_finished(service, id), what)
        if path is None or not path.is_file():
            raise HTTPException(404, "A job has no such result.")
        return FileResponse(
            path,
            filename=path.name,
            content_disposition_type="inline",
            headers={"Cache-Control": "private, no-cache"},
        )


def _named(body: bytes, as_json: bool) -> tuple[str, str]:
    """Path and scale of a slide, from JSON or a plain form."""
    try:
        value = json.loads(body) if as_json else dict(parse_qsl(body.decode()))
        path, mpp = value["path"], value.get("mpp")
        if not isinstance(path, str) or not isinstance(mpp, str | int | float | None):
            raise TypeError("path must be text, mpp a number")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            'A slide must be named: {"path": "A01.svs", "mpp": 0.5} as JSON, say.\n'
            f"Received: {type(error).__name__}: {error!s:.100}.\nOr send the file: -F slide=@FILE."
        ) from error
    return path, "" if mpp is None else str(mpp)


# What goes wrong


def _add_errors(app: FastAPI) -> None:
    def answer(
        request: Request, status: int, message: str, headers: dict[str, str] | None = None
    ) -> Response:
        if request.url.path.startswith("/v2"):  # as the Open Inference Protocol writes it
            return JSONResponse({"error": message}, status, headers)
        return refused(status, message, headers)

    def handler(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def handle(request: Request, error: Exception) -> Response:
            return answer(request, status, str(error))

        return handle

    for kind, status in ((InputError, 400), (TooLargeError, 413), (TooSlowError, 408)):
        app.add_exception_handler(kind, handler(status))

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> Response:
        return answer(request, 429, str(error), {"Retry-After": str(error.retry_s)})

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> Response:
        return answer(request, 503, "The answer took too long.", {"Retry-After": "10"})

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> Response:
        told = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        return answer(request, 400, told)

    @app.exception_handler(AnyHTTPException)
    async def known(request: Request, error: AnyHTTPException) -> Response:
        headers = dict(error.headers) if error.headers else None
        return answer(request, error.status_code, str(error.detail), headers)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return answer(request, 500, "This is a fault of the service; its log says more.")
