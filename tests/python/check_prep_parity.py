#!/usr/bin/env python3
"""Compares ids and labels of dlm-prep with an independent computation: jinja2 set up as transformers does it, the stable tokenizers
package, spans found by rendering the prompt of every assistant turn. Documents are compared as a multiset, without padding.

  check_prep_parity.py --bin target/release/dlm-prep [--shared DIR] [--tokenizers DIR] [--rows-per-file 1500] [--only qwen3]

DIR of --shared holds the third-party test data: assets/conversations/*.parquet and assets/tokenizers.tar.xz (default $DLM_SHARED).
Exit 0: every document is equal. Exit 1: differences, of which the first few are shown. Exit 77: skipped, something is missing.
"""
import argparse, collections, glob, json, os, subprocess, sys, tarfile, tempfile

ap = argparse.ArgumentParser()
ap.add_argument("--bin", required=True)
ap.add_argument("--shared", default=os.environ.get("DLM_SHARED", "../shared"))
ap.add_argument("--tokenizers", help="folder of unpacked tokenizers; tokenizers.tar.xz is unpacked if not given")
ap.add_argument("--rows-per-file", type=int, default=1500)
ap.add_argument("--only", nargs="*", default=["qwen2.5", "qwen3", "smollm2", "llama3"])
ap.add_argument("--engine", default="auto")
a = ap.parse_args()

try:
    import jinja2, jinja2.ext, jinja2.sandbox
    import pyarrow as pa, pyarrow.ipc, pyarrow.parquet as pq
    import tokenizers
except ImportError as e:
    print(f"SKIP: {e}")
    sys.exit(77)
files = sorted(glob.glob(f"{a.shared}/assets/conversations/*.parquet"))
if not files:
    print(f"SKIP: no conversations under {a.shared}/assets")
    sys.exit(77)

tmp = tempfile.TemporaryDirectory()
if a.tokenizers is None:
    with tarfile.open(f"{a.shared}/assets/tokenizers.tar.xz") as t:
        t.extractall(tmp.name, filter="data")
    a.tokenizers = f"{tmp.name}/tokenizers"

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LLAMA3 = "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
SEQ, BD = 512, 32


def compile_template(source, trim):
    # The two templates above are written without block trimming.
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim, extensions=[jinja2.ext.loopcontrols], keep_trailing_newline=not trim)
    env.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False, **k)
    return env.from_string(source)


def conversation(row):
    """The messages of a row in the Nemotron schema, or None for what must be dropped."""
    if not row["input"] or row["output"] is None or row["output"] == "":
        return None
    out = [{"role": "system", "content": row["system_prompt"]}] if row["system_prompt"] else []
    for m in row["input"]:
        if m["content"] is None:
            return None
        out.append({"role": m["role"], "content": m["content"]})
    return out + [{"role": "assistant", "content": row["output"]}]


SHELL = "<think>\n\n</think>\n\n"


class Reference:
    def __init__(self, folder):
        self.tok = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.tok.add_special_tokens([tokenizers.AddedToken("|<MASK>|", special=True, normalized=False)])
        self.plain = tokenizers.Tokenizer.from_str(self.tok.to_str())
        self.plain.encode_special_tokens = True
        self.special = [t.content for t in self.tok.get_added_tokens_decoder().values() if t.special]
        config = f"{folder}/tokenizer_config.json"
        if os.path.exists(config):
            self.template = compile_template(json.load(open(config))["chat_template"], True)
        else:
            self.template = compile_template(LLAMA3 if "<|eot_id|>" in self.special else CHATML, False)
        self.eot = "<|eot_id|>" if "<|eot_id|>" in self.special else "<|im_end|>"

    def render(self, messages, generate):
        return self.template.render(messages=messages, tools=None, documents=None, add_generation_prompt=generate)

    def encode(self, text, hidden):
        """Encodes control tokens of the template as ids, and those inside a message as text."""
        if not hidden:
            return self.tok.encode(text, add_special_tokens=False).ids
        ids, at = [], 0
        while at < len(text):
            nearest = min(((text.find(s, at), -len(s), s) for s in self.special if text.find(s, at) >= 0), default=None)
            end = nearest[0] if nearest else len(text)
            piece = text[at:end]
            for k, s in hidden.items():
                piece = piece.replace(k, s)
            if piece:
                ids += self.plain.encode(piece, add_special_tokens=False).ids
            if nearest is None:
                break
            ids.append(self.tok.token_to_id(nearest[2]))
            at = end + len(nearest[2])
        return ids

    def document(self, messages):
        # Control-token strings in messages become private-use characters while the template is rendered.
        hidden, shown = {}, []
        for m in messages:
            c = m["content"]
            for s in sorted(self.special, key=len, reverse=True):
                if s in c:
                    k = chr(0xE000 + self.special.index(s))
                    assert k not in c
                    c, hidden[k] = c.replace(s, k), s
            shown.append({"role": m["role"], "content": c})
        text = self.render(shown, False)
        spans = []
        for k, m in enumerate(shown):
            if m["role"] != "assistant":
                continue
            prompt = self.render(shown[:k], True)
            assert text.startswith(prompt), "the prompt is not a prefix"
            start = len(prompt)
            if text.startswith(SHELL, start) and not m["content"].startswith("<think>"):
                start += len(SHELL)
            end = text.index(self.eot, start) + len(self.eot)
            spans.append((start, end))
        ids, labels, at = [], [], 0
        for s, e in spans:
            p, r = self.encode(text[at:s], hidden), self.encode(text[s:e], hidden)
            ids += p + r
            labels += [-100] * len(p) + r
            at = e
        # Text after the last turn (a newline) is not part of a document, since decoding generates nothing there.
        return ids[:SEQ], labels[:SEQ]


rows = []
for f in files:
    rows.append(pq.read_table(f).slice(0, a.rows_per_file))
table = pa.concat_tables(rows)
data = f"{tmp.name}/rows.parquet"
pq.write_table(table, data)
talks = [conversation(r) for r in table.to_pylist()]
multi = sum(1 for t in talks if t and sum(m["role"] == "assistant" for m in t) > 1)
failed = False
for name in a.only:
    folder, out = f"{a.tokenizers}/{name}", f"{tmp.name}/out-{name}"
    r = subprocess.run([a.bin, "--input", data, "--tokenizer", folder, "--out", out, "--engine", a.engine], capture_output=True, text=True)
    if r.returncode:
        print(name, r.stderr)
        sys.exit(1)
    engine = next((l for l in r.stderr.splitlines() if l.startswith("engine")), "")
    m = json.load(open(f"{out}/manifest.json"))
    got = collections.Counter()
    for f in m["files"]:
        t = pa.ipc.open_file(pa.memory_map(f"{out}/{f['path']}")).read_all()
        for ids, labels, documents in zip(t["input_ids"].to_pylist(), t["labels"].to_pylist(), t["documents"].to_pylist()):
            for d in documents:
                s, n = d["start"], d["length"]
                i, l = ids[s : s + n], labels[s : s + n]
                while i and i[-1] == m["mask_token_id"]:
                    i.pop(), l.pop()
                got[(tuple(i), tuple(l))] += 1
    ref, want, dropped = Reference(folder), collections.Counter(), 0
    for t in talks:
        if t is None:
            dropped += 1
            continue
        i, l = ref.document(t)
        if all(x == -100 for x in l):
            dropped += 1
        else:
            want[(tuple(i), tuple(l))] += 1
    missing, extra = want - got, got - want
    ok = not missing and not extra and dropped == sum(m["counts"]["dropped"].values())
    failed |= not ok
    print(f"{name}: {sum(want.values())} documents ({multi} multi-turn conversations, {sum(1 for t in talks if t)} in all), {dropped} dropped; "
          f"{sum(missing.values())} missing, {sum(extra.values())} extra: {'equal' if ok else 'DIFFERENT'}; {engine}")
    for what, c in (("missing", missing), ("extra", extra)):
        for (i, l), _ in list(c.items())[:2]:
            print("  ", what, ref.tok.decode(list(i), skip_special_tokens=False)[:300].replace("\n", "\\n"), i[:12], l[:40])
sys.exit(1 if failed else 0)
