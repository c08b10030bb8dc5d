"""The Ray Serve application: a replica holds the model and its running batch, and answers HTTP.

`build` is what a Serve config names as `import_path: workflows.serving.app:build`.
"""

# Annotations stay values here: FastAPI reads them in a replica, where the strings' names may not resolve.
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from ray import serve
from ray.serve import Application, Deployment
from starlette.exceptions import HTTPException

from workflows.corpus.cluster import Environment
from workflows.serving.access import digest_of
from workflows.serving.arguments import ServeArguments
from workflows.serving.desk import Desk, as_json
from workflows.serving.openapi import document
from workflows.serving.page.routes import router as page
from workflows.serving.problems import shape_of
from workflows.serving.replica import first_version, start
from workflows.serving.wire import BadRequest

http = FastAPI(title="OneFlow", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
http.include_router(page)


@http.exception_handler(HTTPException)
async def unknown(request: Request, error: HTTPException) -> Response:
    """No such route, or no such method of it, in the words of the others."""
    shape = shape_of(request.url.path)
    refusal = BadRequest(error.status_code, "", str(error.detail).lower(), "see /openapi.json")
    return as_json(error.status_code, shape(refusal), dict(error.headers or {}))


# What the methods use stands above the class: ingress pickles the routes by value, at this very line.
@serve.deployment(max_constructor_retry_count=1)
@serve.ingress(http)
class Service:
    """One replica."""

    def __init__(
        self, arguments: dict[str, Any], first: str, key_digest: str, environment: Environment
    ) -> None:
        environment.apply()
        self.engine, self.follower = start(ServeArguments(**arguments), first)
        self.desk = Desk(self.engine, key_digest)

    @http.post("/v1/generate")
    async def generate(self, request: Request) -> Response:
        """One document."""
        return await self.desk.generate(request)

    @http.post("/v1/batch")
    async def batch(self, request: Request) -> Response:
        """Many documents."""
        return await self.desk.batch(request)

    @http.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """The same in the words of OpenAI's API."""
        return await self.desk.chat(request)

    @http.post("/v1/images/generations")
    async def pictures(self, request: Request) -> Response:
        """Images in the words of OpenAI's API."""
        return await self.desk.pictures(request)

    @http.get("/v1/models")
    async def models(self, request: Request) -> Response:
        """What is served."""
        return await self.desk.models(request)

    @http.get("/healthz")
    async def healthz(self) -> Response:
        """200 as soon as a replica holds the model."""
        engine = self.engine
        value = {"status": "ok", "model": engine.served.identity, "upgrade": engine.upgrade}
        return as_json(200, value)

    @http.get("/metrics")
    async def metrics(self, request: Request) -> Response:
        """This replica's counters."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return self.desk.guard(request, lambda: Response(self.engine.meters.text(), media_type=kind))

    @http.get("/openapi.json")
    async def openapi(self) -> Response:
        """The description of all this."""
        return as_json(200, document())

    def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises."""
        if not self.engine.healthy():
            raise RuntimeError("the running batch does not move")


def build(arguments: ServeArguments) -> Application:
    """The application for `serve run workflows.serving.app:build model=...` and for a RayService."""
    return bind(arguments, digest_of(arguments.api_key_env))


def bind(arguments: ServeArguments, key_digest: str) -> Application:
    """The application whose API key has that digest."""
    deployment = cast(Deployment, Service).options(**arguments.options)
    first = first_version(arguments)
    return deployment.bind(arguments.model_dump(), first, key_digest, Environment.of_driver())
