#!/usr/bin/env python3
"""Trains tokenizers of every family on the sample and compares ids and labels of dlm-prep with the stable tokenizers package, which
encodes the whole rendered conversation at once; a token belongs to a response if it starts in one.

  check_trained_tokenizers.py --bin target/release/dlm-prep [--conversations 7500] [--only unigram]

Families: BPE of SentencePiece (Prepend, or Metaspace first or always), Unigram, WordPiece, and byte-level BPE with a space before the
text; some with added tokens that swallow the white space beside them. Conversations are those of the sample, a fifth of the contents
with white space before, a fifth with white space behind. Prints a line for each tokenizer. Exit 0: every document is equal.
"""
import argparse, collections, glob, json, os, random, subprocess, sys, tempfile

ap = argparse.ArgumentParser()
ap.add_argument("--bin", required=True)
ap.add_argument("--sample", default=os.path.join(os.path.dirname(__file__), "../../datasets/sample/train.parquet"))
ap.add_argument("--conversations", type=int, default=7500)
ap.add_argument("--only", nargs="*")
a = ap.parse_args()

try:
    import pyarrow.ipc as ipc, pyarrow.parquet as pq
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
except ImportError as e:
    print(f"SKIP: {e}")
    sys.exit(77)

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
CONTROL = "<|im_"

tmp = tempfile.TemporaryDirectory()
rows = pq.read_table(a.sample).to_pylist()


def conversation(row):
    """The messages of a row, some with white space at the ends of their contents."""
    messages = row.get("messages") or row.get("conversations")
    if not messages:
        asked, answer = row.get("input"), row.get("output")
        if not asked or not answer:
            return None
        messages = list(asked) if isinstance(asked, list) else [{"role": "user", "content": asked}]
        messages = messages + [{"role": "assistant", "content": answer}]
    out = []
    for m in messages:
        text = m.get("content")
        if not isinstance(text, str) or "<|" in text:
            return None
        if random.random() < 0.2:
            text = random.choice([" ", "\n", "  ", "\t"]) + text
        if random.random() < 0.2:
            text += random.choice([" ", "\n", "  "])
        out.append({"role": m["role"], "content": text})
    return out if any(m["role"] == "assistant" for m in out) else None


random.seed(1)
conversations = [c for c in map(conversation, rows) if c and sum(len(m["content"]) for m in c) < 6000]
# The same ones as often as it takes.
conversations = [conversations[i % len(conversations)] for i in range(a.conversations)]
data = f"{tmp.name}/conversations.jsonl"
with open(data, "w") as f:
    f.writelines(json.dumps({"messages": c}, ensure_ascii=False) + "\n" for c in conversations)
texts = [m["content"] for c in conversations[:1500] for m in c]


def changed(tokenizer, normalizer=None, pre_tokenizer=None):
    """The tokenizer with these parts only, and without added tokens for bytes."""
    j = json.loads(tokenizer.to_str())
    j["added_tokens"] = [t for t in j["added_tokens"] if not t["content"].startswith("<0x")]
    j["normalizer"] = j["pre_tokenizer"] = None
    t = Tokenizer.from_str(json.dumps(j))
    if normalizer:
        t.normalizer = normalizer
    if pre_tokenizer:
        t.pre_tokenizer = pre_tokenizer
    return t


def trained():
    """Tokenizers by name, with changes of their added tokens."""
    metaspace = pre_tokenizers.Metaspace
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.pre_tokenizer = metaspace(prepend_scheme="always")
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4000, special_tokens=SPECIAL + BYTES, show_progress=False))
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    yield "sentencepiece_bpe", changed(bpe, normalizer=prepend), {}
    yield "sentencepiece_bpe_swallowing", changed(bpe, normalizer=prepend), {"<|im_start|>": {"rstrip": True}, "<|im_end|>": {"lstrip": True, "rstrip": True}}
    yield "metaspace_first", changed(bpe, pre_tokenizer=metaspace(prepend_scheme="first", split=False)), {}
    yield "metaspace_first_split", changed(bpe, pre_tokenizer=metaspace(prepend_scheme="first", split=True)), {}
    yield "metaspace_always", changed(bpe, pre_tokenizer=metaspace(prepend_scheme="always")), {}
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    unigram.pre_tokenizer = metaspace(prepend_scheme="always")
    unigram.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=4000, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False))
    yield "unigram", unigram, {}
    unigram.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace(prepend_scheme="always")])
    yield "unigram_words", unigram, {}
    unigram.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC()])
    yield "unigram_stripped", unigram, {}
    wordpiece = Tokenizer(models.WordPiece(unk_token="<unk>"))
    wordpiece.normalizer = normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=4000, special_tokens=SPECIAL, show_progress=False))
    yield "wordpiece", wordpiece, {}
    level = Tokenizer(models.BPE())
    level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    level.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    level.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4000, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False))
    yield "byte_level_space", level, {}
    level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    yield "byte_level_swallowing", level, {"<|im_start|>": {"rstrip": True, "lstrip": True}, "<|im_end|>": {"rstrip": True}}
    level.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)])
    yield "byte_level_digits_space", level, {}


def expected(tokenizer, messages):
    """Ids and labels of a conversation up to its last label, from one encoding of the whole text."""
    text, spans = "", []
    for m in messages:
        text += f"<|im_start|>{m['role']}\n"
        start = len(text)
        text += m["content"] + "<|im_end|>"
        if m["role"] == "assistant":
            spans.append((start, len(text)))
        text += "\n"
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids, labels = [], []
    for i, (start, end) in zip(encoding.ids, encoding.offsets):
        piece = text[start:end]
        if piece.strip().startswith(CONTROL):
            # White space that the token has swallowed is no part of the place where it stands.
            start += len(piece) - len(piece.lstrip())
        elif any(start < edge < end for span in spans for edge in span):
            return None
        ids.append(i)
        labels.append(i if any(s <= start < e for s, e in spans) else -100)
    last = max((k for k, label in enumerate(labels) if label != -100), default=-1) + 1
    return tuple(ids[:last]), tuple(labels[:last])


def prepared(folder, out):
    """The documents of dlm-prep, as a multiset."""
    command = [a.bin, "--input", data, "--tokenizer", folder, "--out", out, "--seq-len", "4096", "--bd-size", "1", "--over-long", "drop", "--eval-fraction", "0"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(command)}\n{run.stderr}")
    documents = collections.Counter()
    for file in sorted(glob.glob(f"{out}/*.arrow")):
        for row in ipc.open_file(file).read_all().to_pylist():
            at = 0
            for n in row["documents"]:
                n = n["length"] if isinstance(n, dict) else n
                documents[tuple(row["input_ids"][at : at + n]), tuple(row["labels"][at : at + n])] += 1
                at += n
    return documents


wrong = 0
for name, tokenizer, changes in trained():
    if a.only and name not in a.only:
        continue
    folder = f"{tmp.name}/{name}"
    os.makedirs(folder)
    j = json.loads(tokenizer.to_str())
    for token in j["added_tokens"]:
        token.update(changes.get(token["content"], {}))
    json.dump(j, open(f"{folder}/tokenizer.json", "w"), ensure_ascii=False)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<pad>", "chat_template": TEMPLATE}
    json.dump(config, open(f"{folder}/tokenizer_config.json", "w"))
    out = f"{tmp.name}/{name}.out"
    documents = prepared(folder, out)
    reference = Tokenizer.from_file(f"{out}/tokenizer/tokenizer.json")
    straddling = different = 0
    for c in conversations:
        document = expected(reference, c)
        if document is None:
            straddling += 1
        elif documents[document] > 0:
            documents[document] -= 1
        else:
            different += 1
            if different == 1:
                print(f"{name}: not found: {reference.decode(list(document[0]), skip_special_tokens=False)!r}")
    equal = len(conversations) - straddling - different
    print(f"{name}: {len(conversations)} conversations, {equal} equal, {different} different, {straddling} with a token across a border")
    wrong += different
sys.exit(1 if wrong else 0)
