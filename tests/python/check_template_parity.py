#!/usr/bin/env python3
"""Compares texts and assistant turns of dlm-prep with an independent computation: texts by transformers where it is installed, otherwise
by jinja2 set up as transformers does it; turns found by rendering the messages before each of them with the generation prompt.

  check_template_parity.py [run]                        the whole comparison, by the Rust test pipeline/src/tests/parity.rs
  check_template_parity.py cases DIR [TEMPLATES.json]   writes DIR/cases.json: templates and conversations
  check_template_parity.py check DIR                    reads DIR/ours.json, prints every difference, and the counts; writes
                                                        DIR/goldens.json, the results for the templates of this file

DLM_PARITY_KEEP names a folder that DIR is copied to; DLM_PARITY_VERBOSE=1 prints what every pair of template and conversation gives;
DLM_WRITE_PARITY=1 writes the goldens into tests/fixtures.

TEMPLATES.json holds published templates ({"templates": {name: source}}); without it only the templates of this file are compared.
Where data and template do not fit, dlm-prep changes the data as docs/data.md says (text and object as arguments of a call, names of
the field for thoughts, parts of a content, null contents). Here all these changes are tried, and the text must be one that jinja2
gives for one of them and that holds every answer, thought and call. A dropped row must be one that jinja2 refuses or does not write
whole.
"""
import datetime, itertools, json, os, re, shutil, subprocess, sys

import jinja2, jinja2.ext, jinja2.sandbox

try:
    from transformers import __version__ as transformers_version
    from transformers.utils import chat_template_utils
except ImportError:
    chat_template_utils = None

OPEN, CLOSE = "\ue000", "\ue001"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
CALLS = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for t in m.tool_calls or [] %}\n<tool_call>\n"
         "{{ {'name': t.function.name, 'arguments': t.function.arguments} | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
OWN = {
    "own:chatml": CHATML,
    "own:calls": CALLS,
    "own:arguments as text": CALLS.replace("{{ {'name': t.function.name, 'arguments': t.function.arguments} | tojson }}",
                                           "{{ t.function.name + '(' + t.function.arguments + ')' }}"),
    "own:thoughts of the last turn": CALLS.replace(
        "{{ m.content }}", "{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"),
    "own:thoughts of all turns": CALLS.replace("{{ m.content }}", "{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}"),
    "own:thoughts behind the content": CALLS.replace("{{ m.content }}", "{{ m.content }}{% if m.reasoning %}<|why|>{{ m.reasoning }}{% endif %}"),
    "own:content behind the calls": CALLS.replace("{{ m.content }}", "").replace("<|im_end|>", "{{ m.content }}<|im_end|>"),
    "own:control tokens in calls": CALLS.replace("<tool_call>", "<|call|>").replace("</tool_call>", "<|end_call|>"),
    "own:generation": CHATML.replace("{{ m.content }}<|im_end|>", "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
                                     "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"),
    "own:inst": "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}{% else %}"
                "[INST] {{ m.content | trim }} [/INST]{% endif %}{% endfor %}",
    "own:no end of turn": "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n\n{% endfor %}"
                          "{% if add_generation_prompt %}Assistant:{% endif %}",
    "own:channels": "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>"
                    "{{ m.thinking }}<|end|>{% endif %}{% for t in m.tool_calls or [] %}<|start|>assistant to={{ t.function.name }}<|channel|>"
                    "commentary<|message|>{{ t.function.arguments | tojson }}<|call|>{% endfor %}{% if m.content %}<|start|>assistant<|channel|>"
                    "final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% else %}<|start|>{{ m.role }}"
                    "<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    "own:prompt opens thoughts": CALLS.replace("assistant\n", "assistant\n<think>\n").replace(
        "{{ m.content }}", "{% if m.role == 'assistant' %}{% set c = m.content | string %}<think>\n{% if m.reasoning_content %}"
        "{{ m.reasoning_content }}{% elif '</think>' in c %}{{ c.split('</think>')[0].split('<think>')[-1] | trim }}{% endif %}\n</think>\n\n"
        "{{ c.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}"),
    "own:two tokens behind answers": CALLS.replace("<|im_end|>", "{% if m.role == 'assistant' %}<|end_response|>{% endif %}<|im_end|>"),
    "own:text behind the last message": CHATML.replace("{% if add", "</s>{% if add"),
    "own:text before the end of turn": CALLS.replace("<|im_end|>", "{% if m.role == 'assistant' %} (over){% endif %}<|im_end|>"),
    "own:parts": CHATML.replace("{{ m.content }}", "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"),
    "own:question about the answers": "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}<|judge|>Are the answers good?"
                                      "<|start|>judge",
    "own:ids for names": CALLS.replace("{{ {'name': t.function.name, 'arguments': t.function.arguments} | tojson }}",
                                       "{{ t.id }}{{ t.function.arguments | tojson }}"),
    "own:instructions behind the last message": CALLS.replace("{% if add", "<|im_start|>system\nCall or answer.<|im_end|>\n{% if add").replace(
        "{{ m.content }}", "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"),
    "own:calls without end of turn, and instructions": CALLS.replace("<|im_end|>", "{{ '' if m.tool_calls else '<|im_end|>' }}").replace(
        "{% if add", "<|im_start|>system\nCall or answer.<|im_end|>\n{% if add"),
    # One turn of the model from a question to the next, with the results of calls and the text behind them.
    "own:text behind the results": (
        "{% for m in messages if m.role != 'tool' %}{% if m.role != 'assistant' %}<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n{% else %}"
        "{% if loop.previtem.role != 'assistant' %}<|turn>model\n{% endif %}{% if m.thinking %}<|think>{{ m.thinking }}<think|>{% endif %}"
        "{% for t in m.tool_calls or [] %}<|call>{{ t.function.name }}{{ t.function.arguments | tojson }}<call|>{% endfor %}"
        "{% set ns = namespace(results=m.tool_responses or [], found=false) %}{% for r in messages %}{% if r.role == 'tool' %}{% for t in m.tool_calls or []"
        " if t.id == r.tool_call_id and not m.tool_responses and ns.found %}{% set ns.results = ns.results + [{'name': t.function.name, 'response':"
        " r.content}] %}{% endfor %}{% else %}{% set ns.found = r == m %}{% endif %}{% endfor %}"
        "{% for r in ns.results %}<|result>{{ r.name }}: {{ r.response }}<result|>{% endfor %}{{ m.content | trim }}"
        "{% if m.tool_calls and not ns.results %}<|result>{% elif m.content or not ns.results %}<turn|>\n{% endif %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt and messages[-1].role not in ['tool', 'assistant'] %}<|turn>model\n{% endif %}"),
    "own:calls beside their results": (
        "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content if not m.tool_calls }}{% for t in m.tool_calls or [] %}"
        "<|call|>{{ t.function.name }}{{ t.function.arguments | tojson }}<|end_call|>{% for r in messages if r.role == 'tool' and"
        " r.tool_call_id == t.id %}<|result|>{{ r.content }}<|end_result|>{% endfor %}{% endfor %}{{ m.content if m.tool_calls }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"),
    "own:gen prompt with thoughts": CHATML.replace("assistant\n", "assistant\n{% if not thinking %}<think>\n\n</think>\n\n{% endif %}"),
}


def user(text):
    return {"role": "user", "content": text}


def answer(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def call(name, arguments, number=0):
    return {"id": f"callzz{number:03}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(text, name="zqa_lamp", number=0):
    return {"role": "tool", "content": text, "tool_call_id": f"callzz{number:03}", "name": name}


def tool(name):
    properties = {"room": {"type": "string", "description": "which room"}, "level": {"type": "integer", "description": "how much"}}
    return {"type": "function", "function": {"name": name, "description": "Switches a lamp.",
            "parameters": {"type": "object", "properties": properties, "required": ["room"]}}}


TOOLS = [tool("zqa_lamp"), tool("zqb_fan")]
LAMP = {"room": "zqr_hall", "level": 3}
SYSTEM = {"role": "system", "content": "zqs Be brief."}
CONVERSATIONS = {
    "plain": {"messages": [user("zqu one"), answer("zqt two")]},
    "system": {"messages": [SYSTEM, user("zqu one"), answer("zqt two.\n\nzqt three")]},
    "turns": {"messages": [user("zqu one"), answer("zqt two"), user("zqv three"), answer("zqw four"), user("zqx five"), answer("zqy six")]},
    "spaces": {"messages": [SYSTEM, user(" zqu one\n"), answer("\n zqt two \n"), user("zqv three  "), answer("  zqw four\n\n")]},
    "call": {"tools": TOOLS, "messages": [user("zqu one"), answer("", tool_calls=[call("zqa_lamp", LAMP)]), result("zqz done"), answer("zqt two")]},
    "call as text": {"tools": TOOLS, "messages": [SYSTEM, user("zqu one"), answer(None, tool_calls=[call("zqa_lamp", json.dumps(LAMP))]),
                                                  result("zqz done"), answer("zqt two")]},
    "call with text": {"tools": TOOLS, "messages": [user("zqu one"), answer("zqc wait", tool_calls=[call("zqa_lamp", LAMP)]),
                                                    result("zqz done"), answer("zqt two")]},
    "two calls with text": {"tools": TOOLS, "messages": [
        user("zqu one"), answer("zqc wait", tool_calls=[call("zqa_lamp", LAMP, 1), call("zqb_fan", {"room": "zqq_attic"}, 2)]),
        result("zqz done", number=1), result("zqn on", "zqb_fan", 2), answer("zqt two"), user("zqv three"), answer("zqw four")]},
    "calls with text": {"tools": TOOLS, "messages": [
        user("zqu one"), answer("zqc wait", tool_calls=[call("zqa_lamp", LAMP, 1)]), result("zqz done", number=1),
        answer("zqd more", reasoning_content="zqh Hm.", tool_calls=[call("zqb_fan", {"room": "zqq_attic"}, 2)]), result("zqn on", "zqb_fan", 2),
        answer("zqt two")]},
    "text before and behind": {"tools": TOOLS, "messages": [
        user("zqu one"), answer("zqb first"), answer("zqc wait", tool_calls=[call("zqa_lamp", LAMP)]), result("zqz done"), answer("zqt two")]},
    "result in the message": {"tools": TOOLS, "messages": [
        user("zqu one"), answer("zqc wait", tool_calls=[call("zqa_lamp", LAMP)], tool_responses=[{"name": "zqa_lamp", "response": "zqz done"}]),
        user("zqv three"), answer("zqt two")]},
    "call last": {"tools": TOOLS, "messages": [SYSTEM, user("zqu one"), answer("", tool_calls=[call("zqa_lamp", LAMP)])]},
    "two calls": {"tools": TOOLS, "messages": [
        user("zqu one"), answer("", tool_calls=[call("zqa_lamp", LAMP, 1), call("zqb_fan", {"room": "zqq_attic"}, 2)]),
        result("zqz done", number=1), result("zqn on", "zqb_fan", 2), answer("zqt two")]},
    "call then turns": {"tools": TOOLS, "messages": [user("zqu one"), answer("", tool_calls=[call("zqa_lamp", LAMP)]), result("zqz done"),
                                                     answer("zqt two"), user("zqv three"), answer("zqw four")]},
    "tools unused": {"tools": TOOLS, "messages": [SYSTEM, user("zqu one"), answer("zqt two")]},
    "thoughts": {"messages": [user("zqu one"), answer("zqt two", reasoning_content="zqh Hm.\nzqh Yes.")]},
    "thoughts in text": {"messages": [SYSTEM, user("zqu one"), answer("<think>\nzqh Hm.\n</think>\n\nzqt two")]},
    "thoughts in turns": {"messages": [user("zqu one"), answer("zqt two", reasoning_content="zqh Hm."), user("zqv three"),
                                       answer("zqw four", reasoning_content="zqi Aha.")]},
    "thoughts and call": {"tools": TOOLS, "messages": [user("zqu one"), answer("", reasoning_content="zqh Hm.", tool_calls=[call("zqa_lamp", LAMP)]),
                                                       result("zqz done"), answer("zqt two", reasoning_content="zqi Aha.")]},
    "thoughts as parts": {"messages": [user("zqu one"), answer([{"type": "thinking", "thinking": "zqh Hm."}, {"type": "text", "text": "zqt two"}])]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "zqu one"}, {"type": "text", "text": " zqu more"}]},
                           answer([{"type": "text", "text": "zqt two"}])]},
    "kwargs off": {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}, "messages": [SYSTEM, user("zqu one"), answer("zqt two")]},
    "kwargs on": {"chat_template_kwargs": {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
                  "messages": [user("zqu one"), answer("zqt two"), user("zqv three"), answer("zqw four")]},
    "loss flags": {"messages": [user("zqu one"), answer("zqt two", weight=0), user("zqv three"), answer("zqw four", weight=1)]},
    "developer": {"messages": [{"role": "developer", "content": "zqs Be brief."}, user("zqu one"), answer("zqt two")]},
}


class Generation(jinja2.ext.Extension):
    """`{% generation %}` blocks, enclosed in two characters."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        return OPEN + caller() + CLOSE


FIXED_TIME = datetime.datetime(2025, 1, 1, 12)


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return FIXED_TIME


def compile_template(source):
    if chat_template_utils and not re.search(r"{%-?\s*generation", source):
        chat_template_utils.datetime = FixedTime
        return chat_template_utils._compile_jinja_template(source)
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.policies["json.dumps_kwargs"] = {}
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: FIXED_TIME.strftime(form)
    return env.from_string(source)


class Renderer:
    def __init__(self, template, row):
        self.template, self.tools, self.kwargs = template, row.get("tools"), row.get("chat_template_kwargs", {})

    def __call__(self, messages, prompt=False, marked=False):
        """The text, or None where the template refuses."""
        try:
            text = self.template.render(**{**SPECIALS, **self.kwargs}, messages=messages, tools=self.tools, documents=None,
                                        add_generation_prompt=prompt)
        except Exception:
            return None
        return text if marked else text.replace(OPEN, "").replace(CLOSE, "")


MARKUPS = [("<think>", "</think>"), ("<seed:think>", "</seed:think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"), ("<thought>", "</thought>")]
FIELDS = ["reasoning_content", "reasoning", "thinking"]
CHANGES = {"parts": [False, "joined", "listed", "joined listed"], "null": [False, True], "arguments": ["given", "object", "text", "bare object"]}


def changed(messages, parts, null, arguments, thoughts):
    """The messages after some of the changes that dlm-prep makes; the same object where nothing changes."""
    out = json.loads(json.dumps(messages))
    for m in out:
        for key in ["weight"]:
            m.pop(key, None)
        if parts in ("joined", "joined listed") and isinstance(m["content"], list):
            thought = "".join(p["thinking"] for p in m["content"] if p["type"] == "thinking")
            m["content"] = "".join(p["text"] for p in m["content"] if p["type"] == "text")
            if thought:
                m["reasoning_content"] = thought
        if null and m["content"] is None:
            m["content"] = ""
        for t in m.get("tool_calls", []):
            f = t["function"]
            if arguments != "given":
                value = json.loads(f["arguments"]) if isinstance(f["arguments"], str) else f["arguments"]
                f["arguments"] = json.dumps(value) if arguments == "text" else value
            if arguments == "bare object":
                t.pop("function"), t.pop("type")
                t.update(f)
        if thoughts != "given" and m.get("reasoning_content"):
            text = m.pop("reasoning_content")
            if isinstance(thoughts, str):
                m[thoughts] = text
            elif isinstance(m["content"], str):
                m["content"] = f"{thoughts[0]}\n{text}\n{thoughts[1]}\n\n{m['content']}"
        if parts in ("listed", "joined listed") and isinstance(m["content"], str):
            m["content"] = [{"type": "text", "text": m["content"]}] if m["content"] else []
    return out


def content_of(m):
    """The text of a message's content."""
    if isinstance(m["content"], list):
        return "".join(p.get("text", "") for p in m["content"])
    return m["content"] or ""


def strings(m):
    """What must occur in the text of an assistant message: answers, thoughts, names and arguments of calls."""
    out = []
    content = m["content"]
    if isinstance(content, list):
        content = "\n".join(p.get("text", p.get("thinking")) for p in content)
    out += re.findall(r"zq[a-z][^\n<]*", content or "")
    for key in FIELDS:
        out += re.findall(r"zq[a-z][^\n<]*", m.get(key) or "")
    for t in m.get("tool_calls", []):
        f = t.get("function", t)
        value = json.loads(f["arguments"]) if isinstance(f["arguments"], str) else f["arguments"]
        out += [f["name"], *(str(v) for v in value.values())]
    return [s.strip() for s in out]


def complete(messages, text):
    results = [r["response"] for m in messages for r in m.get("tool_responses", [])]
    return text is not None and all(r in text for r in results) and not re.search(r"\{'type': '(text|thinking)'", text) and all(s in text for m in messages if m["role"] == "assistant" for s in strings(m))


def first_control(text, control):
    """Start and end of the first control token, or None."""
    found = re.search("|".join(re.escape(t) for t in sorted(control, key=len, reverse=True)), text)
    return found and found.span()


def own_end(tail, control):
    """How much of `tail`, the text behind a turn's last string, belongs to the turn: up to its last control token if there is one."""
    end, at = 0, 0
    while found := first_control(tail[at:], control):
        at += found[1]
        end = at
    return end


def other_end(text, at, tail, control):
    """Where a turn ends behind `at` whose last token is another one than that of `tail`, which ends it in the last message: that of an
    earlier message, or that with which a result begins. None if there is none."""
    token = 0
    while (found := first_control(tail[token:], control)) and own_end(tail[token + found[1]:], control):
        token += found[1]
    token += first_control(tail[token:], control)[0]
    found = first_control(text[at + token:], control)
    return at + token + found[1] if text.startswith(tail[:token], at) and found and not found[0] else None


EMPTY = re.compile(r"\s*(<think>)?\s*</think>\s*")


def behind_the_end(render, control):
    """What the template writes behind the last token that ends a last message: the end of the text, or even a generation prompt."""
    samples = [user("zqu"), answer("zqt"), user("zqv"), answer("zqw")]
    plain = render(samples)
    if plain and "zqt" not in plain:
        plain = render([{**m, "content": [{"type": "text", "text": m["content"]}]} for m in samples])
    if not plain or "zqt" not in plain or "zqw" not in plain:
        return ""
    middle, last = plain[plain.find("zqt") + 3:plain.find("zqv")], plain[plain.rfind("zqw") + 3:]
    # Tokens that begin a text or a generation prompt end no turn.
    leading = re.match(r"(\s|" + "|".join(map(re.escape, control)) + ")*", plain).group()
    prompt = (render([user("zqu")], True) or "")[len(render([user("zqu")]) or ""):]
    openers = [t for t in control if t in leading or t in prompt]
    at = 0
    while found := first_control(last[at:], control):
        token = last[at + found[0]:at + found[1]]
        if last[at:at + found[0]].strip() or not middle.startswith(last[:at + found[1]]) or at and token in openers:
            break
        at += found[1]
    if not at and (found := first_control(last, control)) and not last[:found[0]].strip():
        at = found[1]
    return last[at:] if at or not middle.startswith(last.rstrip()) else ""


def turns(render, messages, text, control):
    """Start and end of every assistant turn with loss; a string where that cannot be said."""
    marked = render(messages, marked=True)
    extra = behind_the_end(render, control)
    if OPEN in marked:
        spans, at, begin = [], 0, None
        for c in marked:
            if c == OPEN:
                begin = at
            elif c == CLOSE:
                closed = own_end(text[begin:at].rstrip(), control) == len(text[begin:at].rstrip())
                found = None if closed else first_control(text[at:], control)
                spans.append((begin, at + (found[1] if found and not text[at:at + found[0]].strip() else 0)))
            else:
                at += 1
        left_out = [s for m in messages if not m.get("weight", 1) for s in strings(m)]
        return [(a, b) for a, b in spans if not any(s in text[a:b] for s in left_out)]
    spans = []
    for k, m in enumerate(messages):
        wanted = strings(m) if m["role"] == "assistant" else []
        if not wanted:
            continue
        prompt, before, alone = render(messages[:k], True), render(messages[:k]), render(messages[:k + 1])
        previous = [s for p in messages[:k] for s in re.findall(r"zq[a-z][^\n<'\"]*", str(p["content"]))]
        floor = text.find(previous[-1]) + len(previous[-1]) if previous else 0
        places = [text.find(s, floor) for s in wanted if not s.isdigit()]
        if prompt and text.startswith(prompt):
            start = len(prompt)
        else:
            if prompt is None or before is None or not prompt.startswith(before):
                return f"no generation prompt for message {k}"
            goes_on = messages[k - 1]["role"] == "assistant" and text.startswith(before)
            # The template wrote earlier messages differently: the prompt is searched before the turn.
            added = prompt[len(before):]
            content = content_of(m)
            heads = [added[:n] for n in range(len(added), 0, -1) if n == len(added) or added[n - 1].isspace() or own_end(added[:n], control) == n]
            heads = [h for h in heads if h == added or h.strip() and "<think>" not in h]
            heads = sorted({*heads, *(h.lstrip() for h in heads), added.strip()}, key=len, reverse=True)
            start = next((text.rfind(h, floor, min(places)) + len(h) for h in heads if h in text[floor:min(places)]), None)
            if not added.strip():
                at = text.rfind(previous[-1], 0, min(places)) + len(previous[-1])
                ends = before[before.rfind(previous[-1]) + len(previous[-1]):]
                start = at + len(ends) if text.startswith(ends, at) else text.find(content if content in text else content.strip()) if content else None
            if start is None and goes_on:
                start = len(before)
            if start is None:
                return f"the generation prompt of message {k} is not in the text"
        pieces = interrupted(render, messages, k, text, start, control)
        if isinstance(pieces, str):
            return pieces
        if pieces:
            if m.get("weight", 1):
                spans += pieces
            continue
        last = max(text.find(s, start) + len(s) for s in wanted)
        if alone is None:
            return f"message {k} is refused as the last one"
        at = max(alone.rfind(s) + len(s) for s in wanted)
        tail = alone[at:]
        if extra and tail.endswith(extra):
            tail = tail[:-len(extra)]
        n = own_end(tail, control)
        if text[last:].startswith(tail[:n]) and n:
            end = last + n
        elif n and (other := other_end(text, last, tail[:n], control)):
            end = other
        elif n and (found := first_control(text[last:], control)) and text[last:last + found[0]] == tail[:first_control(tail, control)[0]]:
            # Another end-of-turn token than that of a last message.
            end = last + found[1]
        else:
            # No end-of-turn token: to the end of the content.
            end = last + len(tail.rstrip()) if text[last:].startswith(tail.rstrip()) else last
            content = content_of(m)
            if content in text[start:] and text.find(content, start) + len(content) > end:
                end = text.find(content, start) + len(content)
            # Some templates leave the token away in the last turn, or the next turn's token ends this one.
            if (found := first_control(text[end:], control)) and not text[end:end + found[0]].strip():
                end += found[1]
        # An empty thought block that the template writes by itself carries no loss.
        content = content_of(m)
        opened = len(text[:start].rstrip())
        if text[:opened].endswith("<think>") and (found := EMPTY.match(text, opened - 7)):
            start = opened - 7
        if found := EMPTY.match(text, start):
            spaces = found.end() - len(content) + len(content.lstrip())
            start = spaces if content and text.startswith(content, spaces) else found.end()
        # Where the template has no generation prompt, what it writes before a content is no part of the answer.
        always = extra.strip() and prompt and prompt.rstrip().endswith(extra.strip())
        silent = before == prompt and render([user("zqu")], True) == render([user("zqu")])
        if content and silent and not always and content.strip() in text[start:end]:
            first = text.find(content.strip(), start)
            if text[start:first].strip():
                start = text.find(content, start) if content in text[start:end] else first
        if m.get("weight", 1):
            spans.append((start, end))
    return spans


def alone_strings(m):
    """The parts of a message, each with the message that has nothing else, and with its strings."""
    parts = [{"content": m["content"]}] if m.get("content") else []
    parts += [{"content": "", "tool_calls": [t]} for t in m.get("tool_calls", [])]
    parts += [{"content": "", key: m[key]} for key in FIELDS if m.get(key)]
    return [(part, strings(part)) for part in parts]


def results_of(messages, k):
    """The results of the calls of message k: of the messages that follow it, and those that it holds itself."""
    texts = [str(r["response"]) for r in messages[k].get("tool_responses", [])]
    following = itertools.takewhile(lambda m: m["role"] == "tool", messages[k + 1:])
    return texts + [content_of(m) for m in following]


def interrupted(render, messages, k, text, start, control):
    """Start and end of every piece of message k, where the template writes results of its calls between its parts. None where it does
    not, a string where that cannot be said. A piece is what the template writes for its parts alone, in a conversation without results."""
    m = messages[k]
    at = lambda s: text.find(s, start)
    # The same words in a later message, or in a result, would be found there.
    placed = sorted((min(map(at, words)), max(at(s) + len(s) for s in words), part) for part, words in
                    ((part, [s for s in words if not s.isdigit()]) for part, words in alone_strings(m)) if words) if m.get("tool_calls") else []
    results = [at(r) for r in results_of(messages, k) if r]
    pieces = []
    for first, last, part in placed:
        if any(first < r < last for r in results):
            return "a result inside a part"
        if pieces and not any(pieces[-1][1] < r < first for r in results):
            pieces[-1] = (pieces[-1][0], last, pieces[-1][2] + [part])
        else:
            pieces.append((first, last, [part]))
    if len(pieces) < 2 and not (placed and any(start < r < placed[-1][1] for r in results)):
        return None
    openings, spans = [render(messages[:k], True), render(messages[:k])], []
    for first, last, parts in pieces:
        one = {"role": "assistant", "content": "".join(p["content"] for p in parts)}
        calls = [t for p in parts for t in p.get("tool_calls", [])]
        one.update({"tool_calls": calls} if calls else {}, **{key: p[key] for p in parts for key in FIELDS if key in p})
        alone = render(messages[:k] + [one])
        prompt = next((p for p in openings if alone and alone.startswith(p)), None)
        if prompt is None:
            return "a part is refused alone"
        words = [w for p in parts for w in strings({"content": "", **p}) if not w.isdigit()]
        cut = max(alone.rfind(w) + len(w) for w in words)
        own, tail = alone[len(prompt):cut], alone[cut:]
        begin = last - len(own)
        if begin < start or text[begin:last] != own:
            return "a part is written otherwise alone"
        n = own_end(tail, control)
        if not text.startswith(tail[:n], last):
            if not (end := other_end(text, last, tail[:n], control)):
                return "the end of a part is not that which it has alone"
            n = end - last
        elif not n:
            n = len(tail.rstrip())
            found = first_control(text[last + n:], control)
            n += found[1] if found and not text[last + n:last + n + found[0]].strip() else 0
        spans.append((begin, last + n))
    return spans


def marks(text, spans):
    out, at = "", 0
    for a, b in spans:
        out += text[at:a] + "⟦" + text[a:b] + "⟧"
        at = b
    return out + text[at:]


LOST = {"assistant_text_lost", "tool_calls_lost", "tool_responses_lost"}
# Rows that are dropped although Python writes everything, with the reason, which docs/templates.md explains.
KNOWN = {
    ("hfjs:moonshotai/Kimi-K2-Thinking", "tool_calls_lost"): "the id of a call stands in place of its name",
    ("own:ids for names", "tool_calls_lost"): "the id of a call stands in place of its name",
}


def own_markup(source):
    return next((m for m in MARKUPS if m[0] in source and m[1] in source), MARKUPS[0])


def reads_thoughts(render):
    return [f for f in FIELDS if "zqh" in (render([user("zqu"), answer("zqt", **{f: "zqh"})]) or "")
            or "zqh" in (render([user("zqu"), answer("", **{f: "zqh"}, tool_calls=[call("zqa_lamp", LAMP)])]) or "")]


def compare(name, template, source, row, ours, control):
    """("same" or the name of what explains the difference, a message for a difference that nothing explains)."""
    render = Renderer(template, row)
    messages = row["messages"]
    plain = render(changed(messages, False, False, "given", "given"))
    variants = {}
    ways = [*reads_thoughts(render)] or [own_markup(source)]
    # Some templates read lists of parts only.
    as_text, as_parts = (render([user("zqu"), answer("zqt")] if text else
                                [{"role": r, "content": [{"type": "text", "text": "zqt"}]} for r in ("user", "assistant")]) for text in (True, False))
    listed = "zqt" not in (as_text or "") and "zqt" in (as_parts or "")
    for values in itertools.product(*CHANGES.values(), ["given", *ways]):
        if "listed" in str(values[0]) and not listed:
            continue
        now = changed(messages, *values)
        variants.setdefault(json.dumps(now), (now, values))
    if "dropped" in ours:
        reason = ours["dropped"]
        if plain is None and reason == "template_refused":
            return "refused by both", None
        if (name, reason) in KNOWN:
            return "dropped: known, " + KNOWN[name, reason], None
        whole = [v for now, v in variants.values() if complete(now, render(now))]
        if whole and (plain is not None):
            return "wrong", f"dropped as {reason}, but Python writes everything with {whole[0]}:\n{render(changed(messages, *whole[0]))}"
        if reason in LOST and not complete(messages, plain):
            return "dropped: " + reason, None
        return "wrong", f"dropped as {reason}; Python: {plain!r}"
    text = ours["text"]
    equal = [(now, v) for now, v in variants.values() if render(now) == text]
    if not equal:
        return "wrong", f"no render of Python is like this:\n{text!r}\n{plain!r}"
    now, values = equal[0]
    if not complete(now, text):
        return "wrong", f"incomplete and not dropped:\n{text}"
    for m, given in zip(now, messages):
        if "weight" in given:
            m["weight"] = given["weight"]
    want = turns(render, now, text, control)
    got = [tuple(s) for s in ours["spans"]]
    if want != got:
        return "wrong", f"{values}\nPython {want if isinstance(want, str) else marks(text, want)!r}\nours   {marks(text, got)!r}"
    names = [k for k, v in zip([*CHANGES, "thoughts"], values) if v not in (False, "given")]
    if names and complete(messages, plain):
        return "same after changes, complete without: " + "+".join(names), None
    return ("same with changed " + "+".join(names) if names else "same"), None


def repository():
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def golden(ours):
    """The result of a row in one string; the text and the turns are those of Python, as nothing differs where goldens are written."""
    return "dropped: " + ours["dropped"] if "dropped" in ours else marks(ours["text"], ours["spans"])


def main():
    if sys.argv[1:] in ([], ["run"]):
        path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
        command = ["cargo", "test", "--release", "--lib", "tests::parity", "--", "--nocapture"]
        raise SystemExit(subprocess.run(command, cwd=repository(), env={**os.environ, "PATH": path}).returncode)
    mode, folder = sys.argv[1:3]
    cases_file = os.path.join(folder, "cases.json")
    if mode == "cases":
        templates = dict(OWN)
        if len(sys.argv) > 3:
            templates.update(json.load(open(sys.argv[3]))["templates"])
        json.dump({"templates": templates, "conversations": CONVERSATIONS, "specials": SPECIALS}, open(cases_file, "w"))
        return
    if keep := os.environ.get("DLM_PARITY_KEEP"):
        shutil.copytree(folder, keep, dirs_exist_ok=True)
    cases, ours = json.load(open(cases_file)), json.load(open(os.path.join(folder, "ours.json")))
    counts, goldens = {}, {}
    for name, source in cases["templates"].items():
        template = compile_template(source)
        for kind, row in cases["conversations"].items():
            outcome, message = compare(name, template, source, row, ours[name]["results"][kind], ours[name]["control"])
            counts[outcome] = counts.get(outcome, 0) + 1
            if name in OWN:
                goldens.setdefault(name, {})[kind] = golden(ours[name]["results"][kind])
            if message:
                print(f"--- {name} | {kind}: {message}")
            elif os.environ.get("DLM_PARITY_VERBOSE"):
                print(f"+++ {name} | {kind}: {outcome}")
    wrong = counts.pop("wrong", 0)
    same = sum(n for k, n in counts.items() if k.startswith("same"))
    dropped = sum(n for k, n in counts.items() if k.startswith("dropped"))
    by = f"transformers {transformers_version}" if chat_template_utils else f"jinja2 {jinja2.__version__}"
    for outcome, n in sorted(counts.items()):
        print(f"{n:6} {outcome}")
    print(f"{len(cases['conversations'])} conversations under {len(cases['templates'])} templates, against {by}: {same} same, {wrong} differ,"
          f" {dropped} dropped, {counts.get('refused by both', 0)} refused by both")
    with open(os.path.join(folder, "goldens.json"), "w") as f:
        used = {"templates": OWN, "conversations": CONVERSATIONS, "specials": SPECIALS, "results": goldens}
        json.dump(used, f, ensure_ascii=False, indent=1)
        f.write("\n")
    print(json.dumps({"wrong": wrong, "same": same, "outcomes": dict(sorted(counts.items()))}))


if __name__ == "__main__":
    main()
