"""check.py KVKEEP DIRECTORY RUN [PART]...: what must hold of vLLM over one daemon, each item with a line of its own.

Without parts, all of `PARTS`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from daemon import WATCHDOG_S, Daemon
from items import Items

HERE = Path(__file__).resolve().parent
CHUNK = 256
# One less than a chunk, a chunk, two and a bit, and two that begin alike.
LENGTHS = (255, 256, 700, 900)
TOKENS = 24


def prompt(length: int, seed: int) -> list[int]:
    return [(i * 37 + 11 * seed + i * i * seed) % 500 + 3 for i in range(length)]


PROMPTS = [prompt(length, seed) for seed, length in enumerate(LENGTHS)]
PROMPTS.append(PROMPTS[-1][: 2 * CHUNK] + prompt(300, 9))
LONG = [prompt(600, seed) for seed in range(20, 24)]
# What a cache that has everything serves: all full chunks. Layer by layer, the one token that must be computed is left out.
# Without one, vLLM finds what two prompts of a batch have in common, for the one that is scheduled later.
EXPECTED = [len(tokens) // CHUNK * CHUNK for tokens in PROMPTS]
ALONE = [0, 0, 0, 0, 2 * CHUNK]
LAYERED = [min(found, len(tokens) - 1) for found, tokens in zip(EXPECTED, PROMPTS)]
# Where a window's pages are not kept before it, a whole prompt ends with a chunk that is computed.
WINDOWED = [(len(tokens) - 1) // CHUNK * CHUNK for tokens in PROMPTS]
PROCESSORS = sorted(os.sched_getaffinity(0))
APART = {"VLLM_CPU_OMP_THREADS_BIND": f"{PROCESSORS[0]}|{PROCESSORS[-1]}"}
PARTS = (
    *("full", "layered", "two-workers", "retrained", "small", "windows", "windows-small", "latent", "draft"),
    *("windows-uncached", "windows-two", "heads", "alone", "late", "pair", "overhead"),
)


def awaited(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WATCHDOG_S
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"in vain: {what}")
        time.sleep(0.05)


class Engine:
    """An engine in a process of its own."""

    def __init__(self, name: str, log: Path, environment: dict[str, str], **options: Any) -> None:
        self.name = name
        mine, its = os.pipe()
        self._answers = os.fdopen(mine)
        self._process = subprocess.Popen(
            [sys.executable, HERE / "engine.py", str(its), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            pass_fds=(its,),
            env={**os.environ, **environment},
            text=True,
        )
        os.close(its)
        self._answer()

    def ask(self, name: str, **arguments: Any) -> Any:
        self.begin(name, **arguments)
        return self.finish()

    def begin(self, name: str, **arguments: Any) -> None:
        """Asks, and waits for nothing."""
        assert self._process.stdin
        print(json.dumps((name, arguments)), file=self._process.stdin, flush=True)

    def finish(self) -> Any:
        """The answer to what was begun."""
        return self._answer()

    def generate(self, prompts: list[list[int]] = PROMPTS, tokens: int = TOKENS) -> tuple[list[list[int]], list[int]]:
        """The texts, and how many tokens were not computed, with vLLM's own cache empty before and after."""
        answer = self.ask("generate", prompts=prompts, tokens=tokens)
        self.forget()
        return answer["texts"], answer["cached"]

    def forget(self) -> None:
        """Empties vLLM's own cache, which it refuses while a block of it is kept for a store."""
        awaited(lambda: self.ask("forget"), "vLLM's own cache is emptied")

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(WATCHDOG_S)

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("the engine has ended; see its log")
        return json.loads(line)


class Check:
    """The items in their order; each engine is started once."""

    def __init__(self, command: str, directory: Path, run: Path) -> None:
        self.items = Items()
        self._directory = directory
        shutil.rmtree(directory / "objects", ignore_errors=True)
        self.daemon = Daemon(command, directory / "objects", run)
        # Objects of spaces that a reset leaves alone.
        self.others = 0

    @contextmanager
    def engine(
        self, name: str, extra: dict[str, Any], environment: Optional[dict[str, str]] = None, **options: Any
    ) -> Iterator[Engine]:
        print(f"---- {name}", flush=True)
        if extra:
            extra = {"connect": self.daemon.url, "chunk_tokens": CHUNK, **extra}
            extra = {name: value for name, value in extra.items() if value != ""}
        engine = Engine(
            name,
            self._directory / f"{name}.log",
            environment or {},
            extra=extra,
            **{**options, "model": str(self._directory / options.get("model", "full"))},
        )
        try:
            yield engine
        finally:
            engine.close()

    def nothing_is_held(self, when: str) -> None:
        """Sessions end when the workers have said that they stored, which may be a moment after the last text."""
        awaited(lambda: self.daemon.explained() == "no session holds anything", f"{when}: explain is empty")
        self.items.check(f"{when}: explain is empty", self.daemon.stats()["l1_shares"], 0)

    def run(self, parts: Sequence[str]) -> None:
        if set(parts) & {"full", "layered", "retrained", "small", "alone", "late", "pair"}:
            with self.engine("reference", {}) as engine:
                self.texts, _ = engine.generate()
                self.long = engine.generate(LONG, 300)[0]
        if "full" in parts:
            with self.engine("full", {"load": "async"}) as engine:
                self.beside_the_steps(engine)
        if "layered" in parts:
            with self.engine("layered", {"load": "layered"}) as engine:
                if "full" not in parts:
                    engine.generate()
                self.layer_by_layer(engine)
        if "two-workers" in parts:
            with self.engine("two-workers", {"load": "async"}, APART, tensor_parallel_size=2) as engine:
                self.two_workers(engine)
        if "retrained" in parts:
            with self.engine("reference-retrained", {}, model="retrained") as engine:
                self.texts_retrained, _ = engine.generate()
            with self.engine("retrained", {"load": "async"}) as engine:
                if not set(parts) & {"full", "layered"}:
                    engine.generate()
                self.retrained(engine)
        if "small" in parts:
            with self.engine("small", {"load": "async"}, num_gpu_blocks_override=20) as engine:
                self.preempted(engine)
        if set(parts) & {"windows", "windows-small", "windows-uncached"}:
            with self.engine("reference-windows", {}, model="windows") as engine:
                self.texts, _ = engine.generate()
                self.long = engine.generate(LONG, 300)[0]
        if "windows" in parts:
            # Prompts are computed in several steps, so that windows move on between two of them.
            with self.engine("windows", {"load": "async"}, model="windows", max_num_batched_tokens=384) as engine:
                self.of_another_kind(engine, WINDOWED)
        if "windows-uncached" in parts:
            without = {"model": "windows", "enable_prefix_caching": False}
            with self.engine("windows-uncached", {"tenant": "without vLLM's own cache"}, **without) as engine:
                self.same("windows, without vLLM's own cache, cold", engine, [0] * len(PROMPTS))
                self.same("windows, without vLLM's own cache, warm", engine, WINDOWED)
        if "windows-two" in parts:
            with self.engine("windows-two", {"load": "async"}, APART, model="windows", tensor_parallel_size=2) as engine:
                texts, cached = engine.generate()
                self.items.check("windows, two workers, cold: nothing is found", max(cached) <= max(ALONE), True)
                self.items.check("windows, two workers, warm: texts and hits are as expected", engine.generate(), (texts, WINDOWED))
                self.nothing_is_held("windows, two workers")
        if "windows-small" in parts:
            with self.engine("windows-small", {"load": "async"}, model="windows", num_gpu_blocks_override=52) as engine:
                self.preempted(engine)
        if "latent" in parts:
            self.latent()
        if "draft" in parts:
            guesses = {"method": "draft_model", "model": str(self._directory / "draft"), "num_speculative_tokens": 2}
            with self.engine("reference-draft", {}, speculative_config=guesses) as engine:
                self.texts, _ = engine.generate()
            with self.engine("draft", {"load": "async"}, speculative_config=guesses) as engine:
                self.of_another_kind(engine, EXPECTED)
        if "heads" in parts:
            self.heads()
        if "alone" in parts:
            own = {"connect": "", "l1_bytes": 64 << 20}
            with self.engine("alone", own) as engine:
                self.same("alone, cold", engine, ALONE)
                self.same("alone, warm", engine, EXPECTED)
        if "late" in parts:
            self.late()
        if "pair" in parts:
            self.pair()
        if "overhead" in parts:
            self.overhead()
        self.nothing_is_held("at the end")

    def heads(self) -> None:
        """Objects of heads: one worker and two share them, both ways."""
        extra = {"canonical": True}
        fresh = [prompt(700, seed) for seed in (71, 72)]
        with (
            self.engine("heads-one", extra) as one,
            self.engine("heads-two", extra, APART, tensor_parallel_size=2) as two,
        ):
            texts, cached = one.generate()
            self.items.check("heads, one worker, cold: nothing is found", sorted(cached), ALONE)
            self.items.check("heads, one worker, warm: texts and hits are as expected", one.generate(), (texts, EXPECTED))
            first, cached = two.generate()
            self.items.check("heads, two workers: what one stored is found", cached, EXPECTED)
            self.items.check("heads, two workers: the texts stay the same", two.generate(), (first, EXPECTED))
            two.generate(fresh)
            texts, cached = one.generate(fresh)
            self.items.check("heads, one worker: what two stored is found", cached, [2 * CHUNK] * 2)
            self.items.check("heads, one worker: the texts stay the same", one.generate(fresh), (texts, cached))

    def late(self) -> None:
        """A daemon that starts after the engine."""
        self.daemon.stop()
        with self.engine("late", {"load": "async"}) as engine:
            self.items.check(
                "late: the engine says that it starts without kvkeep",
                "starts without kvkeep" in (self._directory / "late.log").read_text(),
                True,
            )
            self.same("late, without a daemon", engine, ALONE)
            self.restarted(engine, lambda daemon: None)
            engine.generate()
            self.same("late, with a daemon", engine, EXPECTED)

    def pair(self) -> None:
        """One engine computes prompts, another one, which was asked for them first, waits for their pages."""
        prompts = [prompt(700, seed) for seed in (51, 52)]
        waits = {"load": "async", "lookup_timeout_ms": 1000 * WATCHDOG_S}
        with self.engine("prefill", {"load": "async"}) as prefill, self.engine("decode", waits) as decode:
            decode.begin("generate", prompts=prompts, tokens=TOKENS)
            texts, _ = prefill.generate(prompts)
            answer = decode.finish()
            self.items.check("pair: the texts are the same", answer["texts"], texts)
            self.items.check("pair: what the other computed meanwhile was loaded", answer["cached"], [2 * CHUNK] * 2)

    def overhead(self) -> None:
        """What an empty cache costs: steps of an engine with the connector against those of one without, one after another."""
        # vLLM leaves its threads fewer processors where there is a connector, which would be measured else.
        one = {"VLLM_CPU_OMP_THREADS_BIND": str(PROCESSORS[0])}
        with self.engine("bare", {}, one) as bare, self.engine("asking", {"model": "nobody's"}, one) as asking:
            taken: dict[str, list[float]] = {name: [] for name in ("bare", "asking")}
            for turn in range(10):
                for engine in (bare, asking):
                    taken[engine.name].append(engine.ask("steps", prompts=[prompt(40, 100 + turn)], count=20))
        medians = {name: statistics.median(steps) for name, steps in taken.items()}
        print(f"200 steps, median: {medians['bare']:.0f} us without, {medians['asking']:.0f} us with kvkeep", flush=True)
        self.items.check("overhead: steps were measured", [len(steps) for steps in taken.values()], [10, 10])

    def latent(self) -> None:
        """MLA: vLLM's kernel for a CPU without AMX ignores what is there before a prompt."""
        if "amx_tile" not in Path("/proc/cpuinfo").read_text():
            refused = ""
            try:
                with self.engine("latent", {"load": "async"}, model="latent"):
                    pass
            except RuntimeError:
                refused = (self._directory / "latent.log").read_text()
            self.items.check("latent: refused where it would not be read", "kvkeep does not serve MLA" in refused, True)
            return
        with self.engine("reference-latent", {}, model="latent") as engine:
            self.texts, _ = engine.generate()
        with self.engine("latent", {"load": "async"}, model="latent") as engine:
            self.of_another_kind(engine, EXPECTED)

    def of_another_kind(self, engine: Engine, expected: list[int]) -> None:
        """What must hold of any model."""
        name = engine.name
        texts, cached = engine.generate()
        self.items.check(f"{name}, cold: the texts are the same", texts, self.texts)
        self.items.check(f"{name}, cold: nothing is found", max(cached) <= max(ALONE), True)
        self.same(f"{name}, warm", engine, expected)
        self.nothing_is_held(f"{name}, warm")
        self.restarted(engine, Daemon.stop)
        self.same(f"{name}, from disk", engine, expected)
        self.items.check(f"{name}, from disk: objects were loaded", self.daemon.stats()["loads"] > 0, True)
        self.corrupted(engine, f"{name}, corrupted")
        self.same(f"{name}, after corruption, stored again", engine, expected)
        left = engine.ask("abort", prompts=PROMPTS, steps=3)
        self.items.check(f"{name}, aborted: prompts were cut off", left > 0, True)
        engine.forget()
        self.nothing_is_held(f"{name}, aborted")
        self.same(f"{name}, after aborts", engine, expected)

    def same(self, name: str, engine: Engine, expected: list[int]) -> None:
        texts, cached = engine.generate()
        self.items.check(f"{name}: the texts are the same", texts, self.texts)
        self.items.check(f"{name}: the hit tokens are as expected", cached, expected)

    def beside_the_steps(self, engine: Engine) -> None:
        texts, cached = engine.generate()
        self.items.check("cold: the texts are the same", texts, self.texts)
        self.items.check("cold: nothing is found", sorted(cached), ALONE)
        self.same("warm", engine, EXPECTED)
        self.nothing_is_held("warm")
        self.restarted(engine, Daemon.stop)
        self.same("from disk", engine, EXPECTED)
        self.items.check("from disk: objects were loaded", self.daemon.stats()["loads"] > 0, True)
        self.corrupted(engine, "corrupted")
        self.same("after corruption, stored again", engine, EXPECTED)
        left = engine.ask("abort", prompts=PROMPTS, steps=1)
        self.items.check("aborted at once: prompts were cut off", left > 0, True)
        left = engine.ask("abort", prompts=PROMPTS, steps=9)
        self.items.check("aborted later: prompts were cut off", left > 0, True)
        engine.forget()
        self.nothing_is_held("aborted")
        self.same("after aborts", engine, EXPECTED)
        self.daemon.kill()
        self.same("without a daemon", engine, ALONE)
        self.restarted(engine, lambda daemon: None)
        self.same("after the daemon was killed", engine, EXPECTED)
        self.nothing_is_held("after the daemon was killed")

    def layer_by_layer(self, engine: Engine) -> None:
        self.same("layered, another engine's objects", engine, LAYERED)
        self.corrupted(engine, "layered, corrupted")
        self.same("layered, after corruption", engine, LAYERED)
        self.nothing_is_held("layered")

    def two_workers(self, engine: Engine) -> None:
        awaited(lambda: self.daemon.stats()["writes_pending"] == 0, "all is written")
        before = self.daemon.stats()["l2_objects"]
        # Two halves of a sum are rounded otherwise than the whole: these texts are compared with each other only.
        texts, cached = engine.generate()
        self.items.check("two workers, cold: nothing is found of one worker's objects", sorted(cached), ALONE)
        again, cached = engine.generate()
        self.items.check("two workers, warm: the texts are the same", again, texts)
        self.items.check("two workers, warm: the hit tokens are as expected", cached, EXPECTED)
        self.nothing_is_held("two workers")
        awaited(lambda: self.daemon.stats()["writes_pending"] == 0, "all is written")
        # Those of two workers are other spaces' than those of one, and are all that a reset of one worker's leaves.
        self.others = self.daemon.stats()["l2_objects"] - before

    def retrained(self, engine: Engine) -> None:
        self.same("before a reset", engine, EXPECTED)
        engine.ask("nap")
        self.same("after sleep", engine, ALONE)
        self.same("after sleep, stored again", engine, EXPECTED)
        engine.ask("reload", path=str(self._directory / "retrained"))
        self.items.check("a reset succeeds", engine.ask("reset"), True)
        self.items.check("no object is left of the old weights", self.forgotten(), 0)
        for name, expected in (("retrained, cold", ALONE), ("retrained, warm", EXPECTED)):
            texts, cached = engine.generate()
            self.items.check(f"{name}: the texts are those of the new weights", texts, self.texts_retrained)
            self.items.check(f"{name}: the hit tokens are as expected", cached, expected)
        self.nothing_is_held("retrained")

    def forgotten(self) -> int:
        """Objects of the model's spaces once what is to be deleted is deleted."""
        awaited(lambda: self.daemon.stats()["deletions_pending"] == 0, "what was forgotten is deleted")
        return self.daemon.stats()["l2_objects"] - self.others

    def preempted(self, engine: Engine) -> None:
        for name in (f"{engine.name}, preempted, cold", f"{engine.name}, preempted, warm"):
            texts, _ = engine.generate(LONG, 300)
            self.items.check(f"{name}: the texts are the same", texts, self.long)
        self.items.check(f"{engine.name}: prompts were preempted", engine.ask("counted", metric="vllm:num_preemptions") > 0, True)

    def corrupted(self, engine: Engine, name: str) -> None:
        """Every second object on disk has a bit turned, and memory is empty."""
        found = 0

        def stop_and_corrupt(daemon: Daemon) -> None:
            nonlocal found
            daemon.stop()
            found = daemon.corrupt(2)

        self.restarted(engine, stop_and_corrupt)
        texts, cached = engine.generate()
        self.items.check(f"{name}: the texts are the same", texts, self.texts)
        stats = self.daemon.stats()
        self.items.check(f"{name}: corruption was found", (found > 1, stats["corruptions"] > 0), (True, True))
        self.nothing_is_held(name)

    def restarted(self, engine: Engine, end: Any) -> None:
        """A daemon that ends and starts again under a living engine, which is awaited until it uses it again."""
        end(self.daemon)
        self.daemon.start()
        probe = prompt(CHUNK + 1, 77)
        awaited(lambda: engine.generate([probe], 1)[1] != [0], "the engine finds the daemon again")


if __name__ == "__main__":
    check = Check(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    try:
        check.run(sys.argv[4:] or PARTS)
    finally:
        check.daemon.stop()
    print(f"{check.items.passed} passed, {len(check.items.failed)} failed", flush=True)
    sys.exit(bool(check.items.failed))
