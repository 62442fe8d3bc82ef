# SPDX-License-Identifier: Apache-2.0
"""Prometheus metric and label names of the inference server.

Every series carries the `slm_*` labels below as constant labels of the process. They are set by
the process, and not by the scrape configuration, so that the operator's queries hold with any
Prometheus; their prefix keeps them from colliding with target labels (`namespace`, `pod`, `node`).
"""

from typing import Final

LABEL_NAMESPACE: Final = "slm_namespace"
LABEL_DEPLOYMENT: Final = "slm_deployment"
LABEL_REVISION: Final = "slm_revision"
LABEL_VARIANT: Final = "slm_variant"
LABEL_MODEL: Final = "slm_model"
LABEL_NODE: Final = "slm_node"

CONSTANT_LABELS: Final = (
    LABEL_NAMESPACE,
    LABEL_DEPLOYMENT,
    LABEL_REVISION,
    LABEL_VARIANT,
    LABEL_MODEL,
    LABEL_NODE,
)

REQUESTS: Final = "slmserve_requests_total"
"""Counter {endpoint, code}: finished inference requests by HTTP status code.
A request that its client left has code 499; a refused one (queue full) 429."""

REQUEST_SECONDS: Final = "slmserve_request_duration_seconds"
"""Histogram {endpoint}: accepted inference request, first byte in to last byte out."""

TTFT_SECONDS: Final = "slmserve_time_to_first_token_seconds"
"""Histogram: from arrival to the first generated token, queueing included."""

INTER_TOKEN_SECONDS: Final = "slmserve_inter_token_seconds"
"""Histogram: time between two generated tokens of one request."""

PROMPT_TOKENS: Final = "slmserve_prompt_tokens_total"
"""Counter: prompt tokens processed."""

GENERATED_TOKENS: Final = "slmserve_generated_tokens_total"
"""Counter: tokens generated."""

PROMPT_CACHED_TOKENS: Final = "slmserve_prompt_cached_tokens_total"
"""Counter: prompt tokens whose attention cache was there already; they are among the prompt tokens."""

CACHE_BYTES: Final = "slmserve_cache_bytes"
"""Gauge: most memory that the attention cache of all slots can take. Absent when the engine does not say."""

FEEDBACK: Final = "slmserve_feedback_total"
"""Counter {rating="up"|"neutral"|"down"}: answers that users judged, one judgement for each answer."""

FEEDBACK_SCORE: Final = "slmserve_feedback_score"
"""Summary (`_sum`, `_count`): the judgements as 0..1 (a score s of -1..1 counts as (s + 1) / 2), so that
the sum only grows, and the ratio of two rates is the mean."""

FEEDBACK_LABELS: Final = "slmserve_feedback_labels_total"
"""Counter {label}: labels given with judgements; those that are not in FEEDBACK_KNOWN_LABELS are `other`."""

FEEDBACK_KNOWN_LABELS: Final = (
    "incorrect",
    "incomplete",
    "irrelevant",
    "format",
    "language",
    "unsafe",
    "slow",
    "helpful",
    "other",
)
"""A fixed list: what clients write never becomes the label of a series."""

EXAMPLES: Final = "slmserve_examples"
"""Gauge: corrected answers that lie on the node. Absent where the server keeps none."""

EXAMPLES_DROPPED: Final = "slmserve_examples_dropped_total"
"""Counter {reason}: corrections that were not kept, and examples that went; of EXAMPLES_DROPPED_REASONS.
Absent where the server keeps none."""

DROPPED_EXPIRED: Final = "expired"
DROPPED_LIMIT: Final = "limit"
"""The oldest made room."""
DROPPED_NO_PROMPT: Final = "prompt"
"""The prompt is forgotten, or none that an example can be made of."""
DROPPED_PATTERN: Final = "pattern"
"""The patterns that redact were not done in time."""
DROPPED_BUSY: Final = "busy"
DROPPED_DISK: Final = "disk"
EXAMPLES_DROPPED_REASONS: Final = (
    DROPPED_EXPIRED,
    DROPPED_LIMIT,
    DROPPED_NO_PROMPT,
    DROPPED_PATTERN,
    DROPPED_BUSY,
    DROPPED_DISK,
)

ANSWERS: Final = "slmserve_answers_total"
"""Counter {finish="stop"|"length"|"tool_calls"}: whole answers by how they ended."""

PROMPT_LENGTHS: Final = "slmserve_prompt_length_tokens"
"""Histogram: tokens of a prompt."""

ANSWER_LENGTHS: Final = "slmserve_answer_length_tokens"
"""Histogram: tokens of a whole answer."""

PROMPT_SCRIPTS: Final = "slmserve_prompt_script_total"
"""Counter {script}: requests by the script of most letters of what the user wrote last. A script that is not
in SCRIPTS is `other`, and so are the first SCRIPT_LEAST requests in a script: one alone is somebody."""

SCRIPT_LEAST: Final = 10

SCRIPTS: Final = (
    "latin",
    "cyrillic",
    "greek",
    "arabic",
    "hebrew",
    "devanagari",
    "thai",
    "hangul",
    "kana",
    "han",
    "none",
    "other",
)
"""A fixed list, for the same reason as that of the feedback's labels. `none` has no letters."""

FALLBACK_TOKENS: Final = "slmserve_prompt_fallback_tokens_total"
"""Counter: prompt tokens that are the unknown token or single bytes of a character that the vocabulary lacks.
Absent when the tokenizer has neither."""

REFUSAL_CHECKS: Final = "slmserve_refusal_checks_total"
"""Counter {refused="true"|"false"}: whole answers that were compared with the phrases of refusals.
Absent without phrases."""

DRIFT: Final = "slmserve_drift_index"
"""Gauge {signal}: population stability index of the latest requests against the first ones that this
process served. Absent while either has too few; see DRIFT_SIGNALS."""

DRIFT_SAMPLES: Final = "slmserve_drift_samples"
"""Gauge {signal}: requests (weighted by age) behind the latest side of the index."""

DRIFT_SIGNALS: Final = ("prompt_tokens", "answer_tokens", "script", "finish", "fallback", "feedback")
"""What is compared: lengths in tokens, the script of most letters, how answers end, the share of fallback
tokens, the judgements of users."""

QUEUE_DEPTH: Final = "slmserve_queue_depth"
"""Gauge: requests waiting for a slot."""

SLOTS: Final = "slmserve_slots"
"""Gauge {state="busy"|"total"}: decoding slots."""

EVALUATION_SCORE: Final = "slmserve_evaluation_score"
"""Gauge: share (0..1) of the model's golden set answered as expected, measured on this device
before the server became ready. Absent when the model brings no golden set."""

EVALUATION_SAMPLES: Final = "slmserve_evaluation_samples"
"""Gauge: number of golden cases behind the score."""

EVALUATION_SECONDS: Final = "slmserve_evaluation_duration_seconds"
"""Gauge: wall seconds the golden set took."""

MODEL_LOAD_SECONDS: Final = "slmserve_model_load_seconds"
"""Gauge: process start to model loaded."""

MODEL_INFO: Final = "slmserve_model_info"
"""Gauge, always 1 {digest, engine, version}: what is loaded."""

SANDBOX: Final = "slmserve_sandbox"
"""Gauge: 1 when the kernel keeps the process from opening connections, 0 when it does not."""

ENDPOINT_CHAT: Final = "chat"
ENDPOINT_COMPLETIONS: Final = "completions"
ENDPOINT_EMBEDDINGS: Final = "embeddings"

RATING_UP: Final = "up"
RATING_NEUTRAL: Final = "neutral"
RATING_DOWN: Final = "down"
