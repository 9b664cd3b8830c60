"""The routes of the API: FastAPI's, but for what takes it long at every request.

Of a model in a query, `query: Annotated[Model, Query()]`, it looks every field up, which of 25 takes a sixth of an
answer's time: here the model reads the query whole. A module's router that is included is matched twice, which takes a
tenth: the app takes the routes themselves, which therefore say themselves what else they may answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args

from fastapi import Depends, Request, params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from redshelf.api.queries import PROBLEMS


class _Reader:
    """The dependency that FastAPI calls in place of what it would do itself."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model

    async def __call__(self, request: Request) -> BaseModel:
        try:
            return self.model.model_validate(dict(request.query_params))  # the last of what is given twice
        except ValidationError as error:
            faults = error.errors(include_url=False)
            raise RequestValidationError([{**one, "loc": ("query", *one["loc"])} for one in faults]) from error

    def described(self) -> list[dict[str, Any]]:
        """The parameters, as an OpenAPI document has them."""
        schema = self.model.model_json_schema()
        found = []
        for name, field in schema["properties"].items():
            told = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
            found.append(told | ({"description": field["description"]} if "description" in field else {}))
        return found


def _reader(annotation: Any) -> _Reader | None:
    """What reads an argument of a route, None where that is not its query."""
    for one in get_args(annotation)[1:]:
        if isinstance(one, params.Depends) and isinstance(one.dependency, _Reader):
            return one.dependency  # of an endpoint that has a route already
        if isinstance(one, params.Query):
            return _Reader(get_args(annotation)[0])
    return None


class Route(APIRoute):
    """For `APIRouter(route_class=Route)`. From then on its endpoint's signature, which FastAPI goes by, has the reader
    of the query in place of its model."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **how: Any) -> None:
        how["responses"] = {**PROBLEMS, **(how.get("responses") or {})}
        signature = inspect.signature(endpoint, eval_str=True)
        arguments = dict(signature.parameters)
        for name, argument in signature.parameters.items():
            reader = _reader(argument.annotation)
            if reader is not None:
                del arguments[name]  # and last again: FastAPI, too, reads a query when dependencies have not refused it
                arguments[name] = argument.replace(annotation=Annotated[reader.model, Depends(reader)])
                if described := reader.described():
                    how["openapi_extra"] = {"parameters": described}
        endpoint.__signature__ = signature.replace(parameters=[*arguments.values()])  # type: ignore[attr-defined]
        super().__init__(path, endpoint, **how)
