"""Word error rate of plain speech requests to a running server: text and voice, nothing else.

    vllm-dynin serve vllm_dynin/assets/dynin-tiny --dtype float32 &
    python benchmarks/plain_speech.py http://localhost:8000 --seeds 0 1 2 --limit 50

What is asked, and the judge, are those of `vllm-dynin eval` (text → speech). Needs the judges
(`make judges`).
"""

from __future__ import annotations

import argparse
import io
import statistics

import httpx

from vllm_dynin.canvas import Task
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.media import AUDIO_RATE
from vllm_dynin.training_ext.evaluate.hearing import Whisper
from vllm_dynin.training_ext.evaluate.questions import Settings, ask
from vllm_dynin.training_ext.evaluate.words import spoken_words, word_error_rate


def main() -> None:
    """Ask, listen and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--voice", default="alloy")
    given = parser.parse_args()
    judge, rates = Whisper(), []
    with httpx.Client(base_url=given.url, timeout=300) as http:
        for seed in given.seeds:
            questions = ask(Task.TEXT_TO_SPEECH, given.limit, seed, Settings())
            heard = []
            for question in questions:
                body = {"input": question.expected, "voice": given.voice, "response_format": "wav"}
                answer = http.post("/v1/audio/speech", json=body)
                answer.raise_for_status()
                samples = load_audio(io.BytesIO(answer.content).getvalue(), target_rate=AUDIO_RATE)
                heard.append(spoken_words(judge.hear(samples)))
            rates.append(word_error_rate([q.expected for q in questions], heard))
            print(f"seed {seed}: WER {rates[-1]:.3f} over {len(questions)} requests", flush=True)
    print(f"mean {statistics.fmean(rates):.3f} ({min(rates):.3f} to {max(rates):.3f})")


if __name__ == "__main__":
    main()
