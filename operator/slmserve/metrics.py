# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the process; every sample carries the identity labels of slmwire."""

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from slmserve.config import Identity
from slmserve.sandbox import Confinement
from slmwire import metrics as names

# A "_created" series beside every counter would double what an edge link carries.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
SECONDS_BUCKETS: Final = (
    0.005, 0.01, 0.02, 0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.27, 0.37, 0.5, 0.7, 1.0, 1.4, 2.0, 2.7, 3.7, 5.0,
    7.0, 10.0, 14.0, 20.0, 27.0, 37.0, 50.0, 70.0, 120.0,
)  # fmt: skip
"""At most 1.43 times apart from 0.05 s to 70 s, so that a p95 that is 1.5 times as long is seen."""
_TOKEN_SECONDS: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5,
    1.0, 2.5,
)  # fmt: skip
LENGTH_BUCKETS: Final = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Tokens of a prompt or an answer."""


class _Labelled:
    """A registry's metrics with constant labels on every sample."""

    def __init__(self, registry: CollectorRegistry, labels: Mapping[str, str]) -> None:
        self._registry = registry
        self._labels = dict(labels)

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [self._label(sample) for sample in metric.samples]
            yield metric

    def _label(self, sample: Sample) -> Sample:
        return sample._replace(labels={**sample.labels, **self._labels})


class Metrics:
    """All series of one server; names and meaning are in slmwire.metrics."""

    def __init__(self, identity: Identity) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._labelled = _Labelled(
            self._registry,
            {
                names.LABEL_NAMESPACE: identity.namespace,
                names.LABEL_DEPLOYMENT: identity.deployment,
                names.LABEL_REVISION: identity.revision,
                names.LABEL_VARIANT: identity.variant,
                names.LABEL_MODEL: identity.model,
                names.LABEL_NODE: identity.node,
            },
        )
        self._requests = self._counter(
            names.REQUESTS, "Finished inference requests by HTTP status code.", ("endpoint", "code")
        )
        self._request_seconds = self._histogram(
            names.REQUEST_SECONDS,
            "Accepted request, first byte in to last byte out.",
            SECONDS_BUCKETS,
            ("endpoint",),
        )
        self._first_token = self._histogram(
            names.TTFT_SECONDS,
            "From arrival to the first generated token, queueing included.",
            SECONDS_BUCKETS,
        )
        self._inter_token = self._histogram(
            names.INTER_TOKEN_SECONDS, "Between two generated tokens of one request.", _TOKEN_SECONDS
        )
        self._prompt_tokens = self._counter(names.PROMPT_TOKENS, "Prompt tokens processed.")
        self._generated_tokens = self._counter(names.GENERATED_TOKENS, "Tokens generated.")
        self._cached_tokens = self._counter(
            names.PROMPT_CACHED_TOKENS, "Prompt tokens whose attention cache was there already."
        )
        self._feedback = self._counter(names.FEEDBACK, "Answers that users judged.", ("rating",))
        self._feedback_score = Summary(
            names.FEEDBACK_SCORE, "Judgements of answers, 0 to 1.", registry=self._registry
        )
        self._feedback_labels = self._counter(
            names.FEEDBACK_LABELS, "Labels given with judgements.", ("label",)
        )
        for rating in (names.RATING_UP, names.RATING_NEUTRAL, names.RATING_DOWN):
            self._feedback.labels(rating)
        self._answers = self._counter(names.ANSWERS, "Whole answers by how they ended.", ("finish",))
        lengths = tuple(float(bound) for bound in LENGTH_BUCKETS)
        self._prompt_lengths = self._histogram(names.PROMPT_LENGTHS, "Tokens of a prompt.", lengths)
        self._answer_lengths = self._histogram(names.ANSWER_LENGTHS, "Tokens of a whole answer.", lengths)
        self._scripts = self._counter(
            names.PROMPT_SCRIPTS, "Requests by the script of what the user wrote.", ("script",)
        )
        self._drift = self._gauge(
            names.DRIFT, "Population stability index against the first requests.", ("signal",)
        )
        self._drift_samples = self._gauge(names.DRIFT_SAMPLES, "Requests behind the index.", ("signal",))
        self._fallback: Counter | None = None
        self._refusals: Counter | None = None
        self._examples: Gauge | None = None
        self._dropped: Counter | None = None
        self._queue_depth = self._gauge(names.QUEUE_DEPTH, "Requests waiting for a slot.")
        self._slots = self._gauge(names.SLOTS, "Decoding slots.", ("state",))
        self._load_seconds = self._gauge(names.MODEL_LOAD_SECONDS, "Process start to model loaded.")
        self._info = self._gauge(
            names.MODEL_INFO, "What is loaded; always 1.", ("digest", "engine", "version")
        )
        self._sandbox = self._gauge(
            names.SANDBOX, "1 when the kernel keeps the process from opening connections."
        )
        for endpoint in (names.ENDPOINT_CHAT, names.ENDPOINT_COMPLETIONS, names.ENDPOINT_EMBEDDINGS):
            # A rate over a series that does not exist yet misses its first increment.
            for code in ("200", "500"):
                self._requests.labels(endpoint, code)
            self._request_seconds.labels(endpoint)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name.removesuffix("_total"), text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self._registry, buckets=buckets)

    def record_confinement(self, confinement: Confinement) -> None:
        """Whether the process is confined; until it is told it counts as open."""
        self._sandbox.set(1 if confinement is Confinement.CONFINED else 0)

    def count_request(self, endpoint: str, code: int) -> None:
        """One inference request ended with this status code."""
        self._requests.labels(endpoint, str(code)).inc()

    def observe_request(self, endpoint: str, seconds: float) -> None:
        """Duration of one accepted request."""
        self._request_seconds.labels(endpoint).observe(seconds)

    def observe_first_token(self, seconds: float, prompt_tokens: int) -> None:
        """A request's first token came, so its prompt is processed."""
        self._first_token.observe(seconds)
        self.count_prompt(prompt_tokens)

    def count_cached(self, tokens: int) -> None:
        """Prompt tokens that a first token did not have to wait for."""
        self._cached_tokens.inc(tokens)

    def count_feedback(self, score: float, labels: Iterable[str]) -> None:
        """A user judged an answer: `score` is -1..1, `labels` are any texts."""
        rating = names.RATING_UP if score > 0 else names.RATING_DOWN if score < 0 else names.RATING_NEUTRAL
        self._feedback.labels(rating).inc()
        self._feedback_score.observe((score + 1) / 2)
        for label in {label if label in names.FEEDBACK_KNOWN_LABELS else "other" for label in labels}:
            self._feedback_labels.labels(label).inc()

    def begin_examples(self) -> None:
        """The server keeps examples; call at most once."""
        self._examples = self._gauge(names.EXAMPLES, "Corrected answers that lie on the node.")
        self._dropped = self._counter(
            names.EXAMPLES_DROPPED, "Corrections that were not kept, and examples that went.", ("reason",)
        )
        for reason in names.EXAMPLES_DROPPED_REASONS:
            self._dropped.labels(reason)

    def show_examples(self, count: int) -> None:
        """How many examples lie on the node now."""
        if self._examples is not None:
            self._examples.set(count)

    def count_dropped_examples(self, reason: str, count: int = 1) -> None:
        """Examples that were not kept or went, by a reason of slmwire.metrics.EXAMPLES_DROPPED_REASONS."""
        if self._dropped is not None and count:
            self._dropped.labels(reason).inc(count)

    def count_prompt(self, tokens: int) -> None:
        """Prompt tokens processed, over all requests."""
        self._prompt_tokens.inc(tokens)

    def observe_prompt(self, tokens: int) -> None:
        """One prompt was accepted."""
        self._prompt_lengths.observe(tokens)

    def observe_answer(self, finish: str, tokens: int) -> None:
        """One whole answer ended with this finish reason."""
        self._answers.labels(finish).inc()
        self._answer_lengths.observe(tokens)

    def count_script(self, script: str) -> None:
        """One request in this script, of slmwire.metrics.SCRIPTS."""
        self._scripts.labels(script).inc()

    def count_fallback(self, tokens: int) -> None:
        """Prompt tokens that stand for what the vocabulary lacks; the series begins with the first call."""
        if self._fallback is None:
            self._fallback = self._counter(names.FALLBACK_TOKENS, "Prompt tokens the vocabulary lacks.")
        self._fallback.inc(tokens)

    def begin_refusals(self) -> None:
        """There are phrases of refusals; call at most once."""
        self._refusals = self._counter(
            names.REFUSAL_CHECKS, "Answers compared with phrases of refusals.", ("refused",)
        )
        for refused in ("true", "false"):
            self._refusals.labels(refused)

    def count_refusal_check(self, refused: str) -> None:
        """One answer was compared: "true" or "false"."""
        if self._refusals is not None:
            self._refusals.labels(refused).inc()

    def show_drift(self, signal: str, *, index: float, samples: float) -> None:
        """The present index of a signal, of slmwire.metrics.DRIFT_SIGNALS."""
        self._drift.labels(signal).set(index)
        self._drift_samples.labels(signal).set(samples)

    def observe_next_token(self, seconds: float) -> None:
        """Time since the same request's token before."""
        self._inter_token.observe(seconds)

    def count_generated(self, tokens: int) -> None:
        """Tokens generated, over all requests."""
        self._generated_tokens.inc(tokens)

    def record_loaded(
        self, *, seconds: float, digest: str, engine: str, version: str, slots: int, cache_bytes: int = 0
    ) -> None:
        """The model is loaded; call once. `cache_bytes` 0 means that the engine does not say."""
        if cache_bytes:
            text = "Most memory that the attention cache of all rows can take."
            self._gauge(names.CACHE_BYTES, text).set(cache_bytes)
        self._load_seconds.set(seconds)
        self._info.labels(digest, engine, version).set(1)
        self._slots.labels("total").set(slots)
        self._slots.labels("busy").set(0)

    def record_evaluation(self, *, score: float, samples: int, seconds: float) -> None:
        """The golden set was run; call at most once."""
        self._gauge(names.EVALUATION_SCORE, "Share of the golden set answered as expected.").set(score)
        self._gauge(names.EVALUATION_SAMPLES, "Golden cases behind the score.").set(samples)
        self._gauge(names.EVALUATION_SECONDS, "Wall seconds the golden set took.").set(seconds)

    def render(self, *, queue_depth: int, busy: int) -> bytes:
        """The exposition, with the load of this moment."""
        self._queue_depth.set(queue_depth)
        self._slots.labels("busy").set(busy)
        return generate_latest(self._labelled)
