"""`dlm-train serve` with the clients that people use.

usage: check_serve.py DLM_TRAIN MODEL [--requests N] [--device DEVICE]

Starts the server on a free port and holds it against the PyPI packages `openai` (chat and completions, streaming, 32
requests at once against one after another, a stream that is broken off, refusals) and, where it is installed, `lm_eval`
(`local-completions` and `local-chat-completions` on a task that this script writes). With --requests N it then sends N
requests, 16 at a time, every eighth of them broken off, and compares the memory of the server at the beginning and the
end. Prints one JSON object; the exit code is 1 where something differs.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

KEY = "check-serve-key"


class Server:
    def __init__(self, program, model, more):
        environment = dict(os.environ, DLM_API_KEY=KEY, CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        command = [program, "serve", "--model", model, "--port", "0", "--served-name", "checked", *more]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), f"the server said {line!r}"
        self.url = line.split()[-1]

    def metric(self, name):
        request = urllib.request.Request(self.url + "/metrics", headers={"Authorization": f"Bearer {KEY}"})
        for line in urllib.request.urlopen(request, timeout=30).read().decode().splitlines():
            if line.split(" ")[0] == name:
                return float(line.split(" ")[-1])
        return 0.0

    def resident_kib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def wait_for(holds, what):
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited in vain: {what}")


QUESTIONS = [f"{who} has {count} {what}. How many?" for who in ("Anna", "Ben", "Cem", "Dora") for count in (2, 3)
             for what in ("apples", "books", "cats", "dogs")]


def check_openai(server):
    import openai

    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, timeout=300, max_retries=0)
    assert [model.id for model in client.models.list()] == ["checked"]

    def ask(question, **more):
        messages = [{"role": "user", "content": question}]
        return client.chat.completions.create(model="checked", messages=messages, max_tokens=24, **more)

    # one after another, then 32 at once, then 32 streams at once
    alone = [ask(question).choices[0].message.content for question in QUESTIONS]

    def stream(question):
        chunks = list(ask(question, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda question: ask(question).choices[0].message.content, QUESTIONS))
        streamed = list(pool.map(stream, QUESTIONS))
    assert together == alone, "32 at once differ from one after another"
    assert streamed == alone, "streams differ from whole answers"

    completion = client.completions.create(model="checked", prompt=["Once upon", "The sea"], max_tokens=8, logprobs=0, echo=False)
    for choice in completion.choices:
        assert "".join(choice.logprobs.tokens) == choice.text
        assert all(value <= 0 for value in choice.logprobs.token_logprobs)
    drawn = [client.completions.create(model="checked", prompt="Once upon", max_tokens=16, temperature=1.0, seed=seed).choices[0].text
             for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2], f"seeds: {drawn}"

    # a stream that is broken off frees its row
    before = server.metric('dlm_requests_total{endpoint="completions",outcome="cancelled"}')
    broken = client.completions.create(model="checked", prompt="Once upon", max_tokens=400, stream=True, extra_body={"ignore_eos": True})
    next(iter(broken))
    broken.close()
    wait_for(lambda: server.metric("dlm_live_rows") == 0, "the row of a broken stream")
    after = server.metric('dlm_requests_total{endpoint="completions",outcome="cancelled"}')
    assert after == before + 1, "the broken stream was not cancelled"

    refused = {}
    for name, arguments, error in [
        ("key", {}, openai.AuthenticationError),
        ("model", {"model": "gpt-4"}, openai.NotFoundError),
        ("logit_bias", {"logit_bias": {"5": 1}}, openai.BadRequestError),
        ("response_format", {"response_format": {"type": "json_object"}}, openai.BadRequestError),
        ("max_tokens", {"max_tokens": 10**9}, openai.BadRequestError),
        ("messages", {"messages": []}, openai.BadRequestError),
    ]:
        asking = client.with_options(api_key="wrong") if name == "key" else client
        call = {"model": "checked", "messages": [{"role": "user", "content": "x"}], **arguments}
        try:
            asking.chat.completions.create(**call)
        except error as refusal:
            refused[name] = refusal.body["code"] if isinstance(refusal.body, dict) else str(refusal)
            assert name in ("key",) or refusal.body["param"] == name, f"{name}: {refusal}"
        else:
            raise AssertionError(f"{name} was not refused")
    return {"questions": len(QUESTIONS), "distinct_answers": len(set(alone)), "refused": refused}


def check_lm_eval(server, model):
    import lm_eval
    from lm_eval.tasks import TaskManager

    os.environ["OPENAI_API_KEY"] = KEY
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        rows = [json.dumps({"question": question, "answer": str(i)}) for i, question in enumerate(QUESTIONS[:12])]
        (folder / "rows.jsonl").write_text("\n".join(rows))
        (folder / "counting.yaml").write_text(json.dumps({
            "task": "counting",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }))
        tasks = TaskManager(include_path=str(folder), include_defaults=False)
        answers = {}
        for kind, path, more in [
            ("local-completions", "/v1/completions", {"tokenizer": model, "tokenizer_backend": "huggingface"}),
            ("local-chat-completions", "/v1/chat/completions", {}),
        ]:
            arguments = {"model": "checked", "base_url": server.url + path, "num_concurrent": 4, **more}
            result = lm_eval.simple_evaluate(
                model=kind, model_args=arguments, tasks=["counting"], task_manager=tasks, log_samples=True,
                apply_chat_template=kind == "local-chat-completions", bootstrap_iters=0,
            )
            samples = sorted(result["samples"]["counting"], key=lambda sample: sample["doc_id"])
            answers[kind] = [sample["resps"][0][0] for sample in samples]
            assert len(answers[kind]) == 12, answers
    # the same tokens as the client gets by itself
    import openai

    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, timeout=300)
    for i, question in enumerate(QUESTIONS[:12]):
        text = client.completions.create(model="checked", prompt=question, max_tokens=16, stop=["\n\n"]).choices[0].text
        assert answers["local-completions"][i] == text, (answers["local-completions"][i], text)
        message = client.chat.completions.create(
            model="checked", messages=[{"role": "user", "content": question}], max_tokens=16, stop=["\n\n"])
        assert answers["local-chat-completions"][i] == message.choices[0].message.content
    return {"version": lm_eval.__version__, "answers": 24}


def check_memory(server, count):
    import openai

    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, timeout=300, max_retries=3)

    def one(i):
        stream = i % 2 == 0
        text = QUESTIONS[i % len(QUESTIONS)] + " Tell me." * (i % 23)
        reply = client.chat.completions.create(
            model="checked", messages=[{"role": "user", "content": text}], max_tokens=8 + i % 40, stream=stream, temperature=i % 3 / 2, seed=i)
        if stream:
            for chunk in reply:
                if i % 8 == 0:
                    reply.close()
                    break
        return 1

    figures = []
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for begin in range(0, count, max(1, count // 8)):
            sum(pool.map(one, range(begin, min(count, begin + max(1, count // 8)))))
            wait_for(lambda: server.metric("dlm_live_rows") == 0, "all rows")
            figures.append(server.resident_kib())
    # the caches and the allocator reach their size in the first quarter
    growth = figures[-1] - figures[1]
    assert growth < 16 * 1024, f"memory grew by {growth} KiB: {figures}"
    return {"requests": count, "resident_kib_after_each_eighth": figures}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", default="block")
    arguments = parser.parse_args()
    server = Server(arguments.program, arguments.model, ["--device", arguments.device, "--mode", arguments.mode])
    report = {}
    try:
        report["openai"] = check_openai(server)
        try:
            import lm_eval  # noqa: F401
        except ImportError:
            print("SKIP lm_eval is not installed", file=sys.stderr)
        else:
            report["lm_eval"] = check_lm_eval(server, arguments.model)
        if arguments.requests:
            report["memory"] = check_memory(server, arguments.requests)
        report["exit_code"] = server.stop()
        assert report["exit_code"] == 0
    except AssertionError as difference:
        report["difference"] = str(difference)
        print(json.dumps(report))
        sys.exit(1)
    finally:
        if server.process.poll() is None:
            server.process.kill()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
