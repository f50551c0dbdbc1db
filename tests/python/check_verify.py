"""The answers of `dlm-train serve` in verify mode are the source's own, also beside requests that are broken off.

usage: check_verify.py DLM_TRAIN SOURCE ADAPTER TASKS [--limit N] [--max-tokens N] [--at-once N] [--device DEVICE]

TASKS is a JSON Lines file with `messages`. The source answers all of them alone, with `dlm-train generate --mode ar`. Then a
server with the source and the adapter (conversion.objective=lossless) gets them, --at-once at a time; between two of them
stands the question of another one as a stream that is broken off after its first event. Prints one JSON object; the exit code
is 1 where a text or a number of tokens differs, or where nothing was broken off.
"""

import argparse
import concurrent.futures
import http.client
import json
import subprocess
import sys
import urllib.parse

from check_serve import KEY, Server


def own_answers(program, source, tasks, limit, device):
    command = [program, "generate", "--model", source, "--input", "/dev/stdin", "--mode", "ar", "--json"]
    command += ["--batch-size", "16", "--max-new-tokens", str(limit), "--device", device]
    done = subprocess.run(command, input=b"".join(tasks), stdout=subprocess.PIPE, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [(answer["text"], len(answer["completion_ids"])) for answer in answers]


def post(url, body):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=600)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection, connection.getresponse()


def main():
    parser = argparse.ArgumentParser()
    for name in ("program", "source", "adapter", "tasks"):
        parser.add_argument(name)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    with open(a.tasks, "rb") as lines:
        tasks = list(lines)[: a.limit]
    wanted = own_answers(a.program, a.source, tasks, a.max_tokens, a.device)
    questions = [json.loads(line)["messages"] for line in tasks]
    server = Server(a.program, a.source, ["--adapter", a.adapter, "--device", a.device])

    def ask(messages):
        connection, response = post(server.url, {"messages": messages, "temperature": 0, "max_tokens": a.max_tokens})
        answer = json.loads(response.read())
        connection.close()
        if response.status != 200:
            raise AssertionError(answer)
        return answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]

    def break_off(messages):
        body = {"messages": messages, "temperature": 0, "max_tokens": 4 * a.max_tokens, "stream": True, "ignore_eos": True}
        connection, response = post(server.url, body)
        if response.status != 200:
            raise AssertionError(response.read())
        response.readline()
        response.close()
        connection.close()

    with concurrent.futures.ThreadPoolExecutor(a.at_once) as pool:
        found, broken = [], []
        for i, messages in enumerate(questions):
            found.append(pool.submit(ask, messages))
            broken.append(pool.submit(break_off, questions[i - 1]))
        found = [future.result() for future in found]
        for future in broken:
            future.result()
    cancelled = int(server.metric('dlm_requests_total{endpoint="chat",outcome="cancelled"}'))
    different = [i for i, (own, other) in enumerate(zip(wanted, found, strict=True)) if own != other]
    print(json.dumps({"asked": len(found), "equal": len(found) - len(different), "broken_off": len(broken), "cancelled": cancelled,
                      "first_different": [wanted[different[0]], found[different[0]]] if different else None}))  # fmt: skip
    server.stop()
    return 1 if different or not cancelled else 0


if __name__ == "__main__":
    sys.exit(main())
