"""A completions server on this machine's loopback, around a tiny model, with faults that can be switched on.

Its answers have the shapes of two real ones: llama-cpp-python's 0.3.36 (beginning-of-sequence tokens missing from
`tokens`, other special tokens and halves of characters as empty strings, a drawn token at the end, log-probs off by one
token where the prompt begins with another token) and vLLM's (`prompt_logprobs` by id).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.servers.loopback import LoopbackServer

__all__ = ["FakeServer", "next_log_probs"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@torch.no_grad()
def next_log_probs(model: Any, ids: list[int], bias: Tensor | None = None) -> Tensor:
    """[tokens, vocabulary] log-probs in nats of what follows each token, in float64: the servers' numbers' oracle."""
    logits = model(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits if bias is None else logits + bias, dim=-1)


class FakeServer(LoopbackServer):
    """Serves the model in a folder until the block is left.

    Attributes:
        model: replaced in the middle of a run, it is another model under the same name.
        bias: added to the logits.
        statuses: answered to the next requests, one each, instead of a completion; None answers properly.
        always: answered to every request. headers: sent with an error.
        stalls: so many of the next requests are answered too late.
        body: sent with status 200 instead of an answer.
        shift: the log-probs stand beside the tokens after theirs.
        adds_begin: puts a beginning-of-sequence token in front of every prompt.
        log_probs, usage, echoes: what an answer has.
        respell: what becomes of the tokens' spellings, given them and what was sent.
        key: what it wants; an error says which one it was shown.
        sent: the headers of all requests. most: requests under way at once.
        after: called with the number of each request, from 1.
    """

    def __init__(self, folder: Any, kind: Literal["llama", "vllm"] = "llama", port: int = 0) -> None:
        super().__init__(port)
        self.kind = kind
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.bias: Tensor | None = None
        self.statuses: list[int | None] = []
        self.always: int | None = None
        self.headers: dict[str, str] = {"retry-after-ms": "1"}
        self.stalls = 0
        self.body: str | None = None
        self.shift = self.adds_begin = False
        self.log_probs = self.usage = self.echoes = True
        self.respell: Callable[[list[str], str], list[str]] = lambda pieces, sent: pieces
        self.key: str | None = None
        self.sent: list[dict[str, str]] = []
        self.most = self._now = 0
        self.after: Callable[[int], None] = lambda number: None

    def respond(
        self, path: str, body: dict[str, Any], headers: Mapping[str, str], number: int
    ) -> tuple[int, str, Mapping[str, str]]:
        """See `LoopbackServer.respond`."""
        with self.lock:
            self.sent.append(dict(headers))
            self._now += 1
            self.most = max(self.most, self._now)
        self.after(number)
        try:
            status, content, further = self._respond(body, headers.get("authorization", ""))
        finally:
            with self.lock:
                self._now -= 1
        if path != "/v1/completions":
            status, content = 404, json.dumps({"detail": "Not Found"})
        return status, content, further

    def _respond(self, body: dict[str, Any], shown: str) -> tuple[int, str, dict[str, str]]:
        with self.lock:
            stall, self.stalls = self.stalls > 0, max(0, self.stalls - 1)
            status = self.statuses.pop(0) if self.statuses else self.always
        if stall:
            time.sleep(1.0)
        if self.key is not None and shown != f"Bearer {self.key}":
            status = status or 401
        if status is not None:
            said = {"error": {"message": f"no, not for {shown} {shown.removeprefix('Bearer ')}"}}
            return status, json.dumps(said), self.headers
        if self.body is not None:
            return 200, self.body, {}
        with self.lock:
            return 200, json.dumps(self._complete(body)), {}

    def _ids(self, text: str) -> list[int]:
        begin = [self.tokenizer.bos_token_id] if self.adds_begin else []
        return begin + list(self.tokenizer.encode(text, add_special_tokens=False))

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = self._ids(body["prompt"])
        drawn, reason = self._draw(prompt, body)
        echo = body.get("echo", False) and self.echoes
        choice: dict[str, Any] = {
            "index": 0,
            "text": (body["prompt"] if echo else "") + self.tokenizer.decode(drawn, skip_special_tokens=True),
            "finish_reason": reason,
            "logprobs": None,
        }
        if self.log_probs and body.get("logprobs") is not None:
            choice["logprobs"] = self._said(prompt, drawn, body, echo)
        if self.log_probs and self.kind == "vllm" and body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = self._by_id(prompt)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(drawn), "total_tokens": len(prompt + drawn)}
        return {"id": "x", "object": "text_completion", "model": body["model"], "choices": [choice]} | (
            {"usage": usage} if self.usage else {}
        )

    def _draw(self, prompt: list[int], body: dict[str, Any]) -> tuple[list[int], str]:
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        drawn: list[int] = []
        while len(drawn) < body["max_tokens"]:
            log_probs = next_log_probs(self.model, prompt + drawn, self.bias)[-1]
            if body["temperature"] == 0:
                token = int(log_probs.argmax())
            else:
                token = int(torch.multinomial((log_probs / body["temperature"]).exp(), 1, generator=generator))
            if token == self.tokenizer.eos_token_id:
                return drawn + ([token] if self.kind == "vllm" else []), "stop"
            drawn.append(token)
        return drawn, "length"

    def _said(self, prompt: list[int], drawn: list[int], body: dict[str, Any], echo: bool) -> dict[str, Any]:
        """`logprobs`: tokens, what each got, and the likeliest ones."""
        ids = prompt + drawn
        rows = [None, *next_log_probs(self.model, ids, self.bias)]  # row t: what was expected at token t
        begin = self.tokenizer.bos_token_id
        places = list(range(0 if echo else len(prompt), len(ids)))
        off = 1 if self.shift and echo else 0
        if self.kind == "llama" and echo:
            off = off or (0 if prompt[0] == begin else 1)
            if off and drawn and not self.shift:
                places.pop()  # there is no row of log-probs behind the last token
            places = [place for place in places if ids[place] != begin]
        found = [rows[place + off] for place in places]
        return {
            "tokens": self.respell([self._piece(ids[place]) for place in places], body["prompt"]),
            "token_logprobs": [
                None if row is None or (echo and number == 0) else float(row[ids[place]])
                for number, (place, row) in enumerate(zip(places, found, strict=True))
            ],
            "top_logprobs": [None if row is None else self._likeliest(row, body["logprobs"]) for row in found],
        }

    def _likeliest(self, row: Tensor, count: int) -> dict[str, float]:
        values, ids = row.topk(count)
        return {self._piece(token): value for token, value in zip(ids.tolist(), values.tolist(), strict=True)}

    def _piece(self, token: int) -> str:
        piece = str(self.tokenizer.decode([token]))
        if self.kind == "vllm":
            return piece
        return "" if token in self.tokenizer.all_special_ids else piece.replace(REPLACEMENT, "")

    def _by_id(self, prompt: list[int]) -> list[Any]:
        rows = next_log_probs(self.model, prompt, self.bias)
        off = 0 if self.shift else 1
        return [
            None if place == 0 else {str(token): {"logprob": float(rows[place - off, token]), "rank": 1}}
            for place, token in enumerate(prompt)
        ]
