"""One server, spoken to as its clients do: streaming Chat Completions or Completions over aiohttp."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tiefsee.errors import ConfigError, TiefseeError
from tiefsee.serve.load.plan import Form, Planned
from tiefsee.serve.load.prompts import Prompts, Sizer
from tiefsee.serve.load.record import Record

MOST_RETRIES = 20
LONGEST_WAIT_S = 60.0


class TargetError(TiefseeError):
    """The server under test is not there, refuses us, or does not speak the protocol."""


class Target:
    """The server at `url`. Times are taken when bytes have arrived, before they are looked at."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 600.0, *, retry: bool = False) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url is {url!r}; needed is http://HOST:PORT or https://..")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s, self._retry = timeout_s, retry

    async def __aenter__(self) -> Target:
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=600)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._http = aiohttp.ClientSession(connector=connector, timeout=limits, headers=self._headers)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.close()

    # ---------------------------------------------------------------------------- before a run

    async def model(self, asked: str | None) -> str:
        """The model to ask for: the given one if the server has it, or its only one. TargetError otherwise."""
        try:
            async with self._http.get(f"{self.url}/v1/models", timeout=aiohttp.ClientTimeout(total=30)) as answer:
                text = await answer.text()
                if answer.status in (401, 403):
                    raise TargetError(
                        f"{self.url} answers {answer.status}: it wants a key; name the variable that holds it "
                        "with --api-key-env"
                    )
                names = [item["id"] for item in json.loads(text)["data"]] if answer.status == 200 else []
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise TargetError(
                f"{self.url} cannot be reached: {str(error) or type(error).__name__}; is the server up?"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise TargetError(
                f"{self.url}/v1/models is no list of models; is this a server of OpenAI's protocol?"
            ) from None
        if asked is not None and (asked in names or not names):
            return asked
        if asked is None and len(names) == 1:
            return str(names[0])
        found = f"the server has {', '.join(names[:8])}" if names else "the server names no models"
        raise TargetError(f"--model is {asked!r}; {found}")

    async def calibrate(self, form: Form, seed: int) -> Sizer:
        """Tokens per word and per prompt as this server counts them, by two requests of one token."""
        counts, words = [], (50, 250)
        for number in words:
            prompt = Prompts(Sizer(1.0), seed).piece(f"calibrate:{number}", number)
            planned = Planned(-1, 0.0, form.body(prompt, 1), None, None)
            await self.send(planned, record := planned.record(), time.monotonic())
            if not record.ok or record.num_prompt_tokens is None:
                raise TargetError(_why_not(record))
            counts.append(record.num_prompt_tokens)
        per_word = (counts[1] - counts[0]) / (words[1] - words[0])
        if per_word <= 0:
            raise TargetError(f"the server counts {counts} tokens for {words} words; is it a stub?")
        return Sizer(per_word, counts[0] - per_word * words[0], "the server's usage")

    async def figures(self) -> dict[str, float]:
        """Sums of the counters in /metrics by name; empty where there is no such page."""
        try:
            async with self._http.get(f"{self.url}/metrics", timeout=aiohttp.ClientTimeout(total=5)) as answer:
                text = await answer.text() if answer.status == 200 else ""
        except (aiohttp.ClientError, OSError, TimeoutError):
            return {}
        sums: dict[str, float] = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if name and not line.startswith("#"):
                try:
                    key = name.partition("{")[0]
                    sums[key] = sums.get(key, 0.0) + float(value)
                except ValueError:
                    continue
        return sums

    # ------------------------------------------------------------------------------ one request

    async def send(self, planned: Planned, record: Record, start: float) -> None:
        """Send one request and read its answer to the end; every failure is an outcome, not an exception.

        `start` is the monotonic time that the record's times count from. Whoever cancels this has a record of
        what had come by then, with the outcome "cancelled".
        """
        record.sent_s = time.monotonic() - start
        url = self.url + ("/v1/chat/completions" if "messages" in planned.body else "/v1/completions")
        try:
            async with asyncio.timeout(self._timeout_s):
                while (wait_s := await self._once(url, planned.body, record, start)) is not None:
                    record.num_retries += 1
                    await asyncio.sleep(wait_s)
        except TimeoutError:
            record.outcome, record.error = "timeout", f"no end within {self._timeout_s:g} s"
        except aiohttp.ClientPayloadError as error:
            record.outcome, record.error = "truncated", str(error)[:200]
        except (aiohttp.ClientError, OSError) as error:
            record.outcome, record.error = "unreachable", (str(error) or type(error).__name__)[:200]
        finally:
            record.end_s = time.monotonic() - start

    async def _once(self, url: str, body: dict[str, Any], record: Record, start: float) -> float | None:
        """One try; seconds to wait if it is to be tried again."""
        async with self._http.post(url, json=body) as answer:
            record.status = answer.status
            if answer.status != 200:
                record.outcome = "refused" if answer.status in (429, 503) else "failed"
                record.error = _message(await answer.text())
                again = self._retry and record.outcome == "refused" and record.num_retries < MOST_RETRIES
                return _retry_after_s(answer.headers.get("retry-after")) if again else None
            if answer.content_type != "text/event-stream":
                record.outcome, record.error = "failed", f"the answer is {answer.content_type}, not a stream of events"
                return None
            await _read(answer.content, record, start)
        return None


async def _read(content: aiohttp.StreamReader, record: Record, start: float) -> None:
    """Take the stream apart into the record's chunks, tokens and ending."""
    done, known, counted = False, 0, True
    tokens: list[int] = []
    async for at, data in _events(content):
        if data == b"[DONE]":
            done = True
            continue
        try:
            chunk = json.loads(data)
        except ValueError:
            record.outcome, record.error = "failed", f"an event is no JSON: {data[:80]!r}"
            return
        if "error" in chunk:
            record.outcome, record.error = "failed", _message(data.decode(errors="replace"))
            return
        usage = chunk.get("usage")
        has_text = any(_brings_text(choice) for choice in chunk.get("choices") or ())
        made = 0
        if usage:
            made = (usage.get("completion_tokens") or 0) - known
            known += made
            record.num_prompt_tokens, record.num_output_tokens = usage.get("prompt_tokens"), known
            record.num_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        if chunk.get("choices") and (made > 0 or has_text):
            # Text without a new token is the rest of one that was held back: it is late, but it is no token.
            if made > 0 or not usage or not tokens:
                record.chunk_s.append(at - start)
                tokens.append(made)
            counted = counted and made > 0
        for choice in chunk.get("choices") or ():
            record.finish_reason = choice.get("finish_reason") or record.finish_reason
    record.chunk_tokens = tokens if counted and sum(tokens) == known else None
    if record.num_output_tokens is None:
        record.num_output_tokens = len(record.chunk_s)
    if done and record.finish_reason is not None:
        record.outcome = "ok"
    else:
        missing = "[DONE]" if record.finish_reason is not None else "finish_reason"
        record.outcome, record.error = "truncated", f"the stream ended without {missing}"


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[tuple[float, bytes]]:
    """(time of arrival, data) of each server-sent event."""
    rest = b""
    async for piece in content.iter_any():
        at = time.monotonic()
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield at, line[5:].strip()


def _brings_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or choice
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "text", "tool_calls"))


def _message(text: str) -> str:
    """What the server says went wrong, in one line."""
    try:
        found = json.loads(text)["error"]
        text = found["message"] if isinstance(found, dict) else str(found)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:200]


def _retry_after_s(header: str | None) -> float:
    try:
        return min(LONGEST_WAIT_S, max(0.05, float(header or 1)))
    except ValueError:
        return 1.0


def _why_not(record: Record) -> str:
    if record.ok:
        return "the server's stream has no usage; give --tokenizer FOLDER to size the prompts"
    if record.status == 401:
        return "the server wants a key (401); name the variable that holds it with --api-key-env"
    return f"a first request failed ({record.status or record.outcome}): {record.error}"
