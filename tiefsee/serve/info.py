"""The small endpoints: what is served, how it is, tokens."""

from __future__ import annotations

from typing import Any

from tiefsee import __version__
from tiefsee.errors import RequestError
from tiefsee.serve.bodies import DetokenizeBody, Plain, TokenizeBody, convert
from tiefsee.serve.keys import Caller
from tiefsee.serve.metrics import CONTENT_TYPE
from tiefsee.serve.reply import Reply
from tiefsee.serve.service import Service
from tiefsee.text.bodies import read_chat


def models(service: Service) -> Reply:
    return Reply.json({"object": "list", "data": [_model(service, name) for name in service.names]})


def model(service: Service, name: str) -> Reply:
    return Reply.json(_model(service, service.check_model(name)))


def _model(service: Service, name: str) -> dict[str, Any]:
    """Beside OpenAI's fields: `max_model_len` as vLLM has it, and whether the model can chat."""
    return {
        "id": name, "object": "model", "created": service.created, "owned_by": "tiefsee", "root": service.name,
        "parent": None, "max_model_len": service.max_context, "chat": service.chat_format is not None,
    }  # fmt: skip


def health(service: Service) -> Reply:
    """Alive: 200 as long as somebody is there who can bring the engine back."""
    state = service.engine.state
    return Reply.json({"status": state}, 503 if state == "failed" else 200)


def ready(service: Service) -> Reply:
    """Whether a new request would be served now."""
    state = "draining" if service.draining else service.engine.state
    if state == "ready":
        return Reply.json({"status": state})
    return Reply.json({"status": state}, 503, [(b"retry-after", b"1")])


def version() -> Reply:
    return Reply.json({"version": __version__})


def server_info(service: Service) -> Reply:
    """What SGLang's and vLLM's routers ask for."""
    return Reply.json({
        "version": __version__, "model_path": service.name, "served_model_name": service.name,
        "max_model_len": service.max_context, "is_generation": True, "status": service.engine.state,
    })  # fmt: skip


def metrics(service: Service) -> Reply:
    return Reply(service.metrics.text(), content_type=CONTENT_TYPE)


async def tokenize(service: Service, found: Plain, caller: Caller, request_id: str) -> Reply:
    body = convert(found, TokenizeBody)
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("found both or none of prompt and messages; send one of them")
    if body.prompt is None:
        ids = (await service.render(read_chat(found))).token_ids
    elif body.add_special_tokens:
        ids = (await service.encode(body.prompt)).token_ids
    else:
        ids = service.tokenizer.encode(body.prompt, add_bos=False)
    made: dict[str, Any] = {"count": len(ids), "max_model_len": service.max_context, "tokens": ids}
    if body.return_token_strs:
        made["token_strs"] = [service.tokenizer.token_bytes(i).decode(errors="replace") for i in ids]
    return Reply.json(made)


async def detokenize(service: Service, found: Plain, caller: Caller, request_id: str) -> Reply:
    body = convert(found, DetokenizeBody)
    service.check_model(body.model)
    size = service.tokenizer.vocab_size
    bad = next((token for token in body.tokens if token >= size), None)
    if bad is not None:
        raise RequestError(f"tokens: {bad} is outside the vocabulary of {size} tokens")
    return Reply.json({"prompt": service.tokenizer.decode(body.tokens)})
