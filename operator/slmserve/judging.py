# SPDX-License-Identifier: Apache-2.0
"""The endpoint /v1/feedback: what users think of an answer, as numbers.

What it should have been is kept only where the server keeps examples.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from slmserve.errors import ApiError, invalid
from slmserve.feedback import Vote
from slmserve.parts import Strict
from slmserve.receiving import CLIENT_LEFT, read_body
from slmserve.schemas import parse_body
from slmserve.service import Service

_SCORES: Final = {"up": 1.0, "down": -1.0}
_CORRECTED: Final = -1.0
"""Who writes what an answer should have been says that it was wrong."""
_MOST_CORRECTION: Final = 32 << 10


class FeedbackRequest(Strict):
    """Body of /v1/feedback: `id` of an answer, and a score of -1..1, a rating, or a correction alone."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    score: Annotated[float, Field(ge=-1, le=1)] | None = None
    rating: Literal["up", "down"] | None = None
    correction: Annotated[str, StringConstraints(min_length=1, max_length=_MOST_CORRECTION)] | None = None
    """What the answer should have been."""
    labels: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=32)]], Field(max_length=5)
    ] = Field(default_factory=list)


async def serve_feedback(service: Service, request: Request) -> Response:
    """Count one judgement; raises ApiError 400, 404 or 409.

    Nothing of it is kept but the score, and the correction where the server keeps examples.
    """
    try:
        body = await read_body(request, service.config.max_body_bytes)
    except ClientDisconnect:
        return Response(status_code=CLIENT_LEFT)
    asked = parse_body(FeedbackRequest, body)
    score = _score(asked)
    vote = service.given.judge(asked.id, score, asked.correction)
    if vote is Vote.UNKNOWN:
        raise ApiError(
            404,
            "no recent answer of this server has that 'id'; send feedback to the server that answered, soon",
            param="id",
            code="answer_not_found",
        )
    if vote is Vote.CONFLICTING:
        raise ApiError(
            409, "the answer with that 'id' was judged before; that stands", param="id", code="already_judged"
        )
    if vote is Vote.COUNTED:
        service.metrics.count_feedback(score, asked.labels)
        service.signals.note_judgement(score)
    reply = {"id": asked.id, "object": "feedback", "score": score}
    if asked.correction is not None:
        return JSONResponse(reply | {"kept": await _keep(service, asked.id, asked.correction)})
    if service.keeper is not None:
        service.keeper.forget(asked.id)
    return JSONResponse(reply)


async def _keep(service: Service, identifier: str, correction: str) -> bool:
    if service.keeper is None:
        return False
    service.begin_request()
    try:
        return await service.keeper.keep(identifier, correction)
    finally:
        service.end_request()


def _score(asked: FeedbackRequest) -> float:
    if asked.correction is not None and not asked.correction.strip():
        raise invalid(
            "'correction' is blank; it must be what the answer should have been", param="correction"
        )
    if asked.score is None and asked.rating is None and asked.correction is not None:
        return _CORRECTED
    if (asked.score is None) == (asked.rating is None):
        raise invalid(
            "'score' or 'rating' must be given, and not both; a 'correction' needs neither", param="score"
        )
    return _SCORES[asked.rating] if asked.rating is not None else asked.score or 0.0
