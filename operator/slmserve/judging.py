# SPDX-License-Identifier: Apache-2.0
"""The endpoint /v1/feedback: what users think of an answer, as numbers only."""

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


class FeedbackRequest(Strict):
    """Body of /v1/feedback: `id` of an answer, and a score of -1..1 or a rating."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    score: Annotated[float, Field(ge=-1, le=1)] | None = None
    rating: Literal["up", "down"] | None = None
    labels: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=32)]], Field(max_length=5)
    ] = Field(default_factory=list)


async def serve_feedback(service: Service, request: Request) -> Response:
    """Count one judgement; raises ApiError 400, 404 or 409. Nothing of it is kept but the score."""
    try:
        body = await read_body(request, service.config.max_body_bytes)
    except ClientDisconnect:
        return Response(status_code=CLIENT_LEFT)
    asked = parse_body(FeedbackRequest, body)
    score = _score(asked)
    vote = service.given.judge(asked.id, score)
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
    return JSONResponse({"id": asked.id, "object": "feedback", "score": score})


def _score(asked: FeedbackRequest) -> float:
    if (asked.score is None) == (asked.rating is None):
        raise invalid("'score' or 'rating' must be given, and not both", param="score")
    return _SCORES[asked.rating] if asked.rating is not None else asked.score or 0.0
