#!/usr/bin/env python3
"""Templates of one feature each, with what jinja2 gives for them in the sandbox that transformers sets up.

  template_probes.py > tests/fixtures/template_probes.json

A line of PROBES is a template; `\\n`, `\\r` and `\\t` outside of its strings stand for the characters. Behind `- ` it is one that
dlm-prep refuses although Python renders it. Needs transformers.
"""
import datetime, json, re, sys

from transformers.utils import chat_template_utils


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 7, 10, 12, 5, 9)


chat_template_utils.datetime = FixedTime
CONTEXT = {
    "s": "Hello, World", "e": "", "u": "Grüße 日本 🎉", "w": "  a b\tc\n ", "n": 7, "z": 0, "neg": -7, "f": 2.5, "g": 1e20, "big": 12345678901234567890,
    "huge": 2 ** 70, "t": True, "no": False, "none": None, "l": [3, 1, 2], "ls": ["b", "A", "c"], "el": [], "mixed": [1, "a", None, True, 2.5],
    "d": {"a": 1, "b": [1, 2], "c": {"x": "y"}}, "ed": {}, "kd": {"items": 5, "keys": "k", "z": None},
    "people": [{"name": "Ann", "age": 30, "city": "X", "a": {"b": 2}}, {"name": "Bob", "age": 25, "city": "Y", "a": {"b": 1}},
               {"name": "cid", "age": 30, "city": "X", "a": {"b": 3}}],
    "messages": [{"role": "system", "content": "sys"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"},
                 {"role": "user", "content": "bye"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}],
    "uni": {"k": "é\u2028\"\\\n<&>'", "n": [1.0, 1e-7, 1e16, -0.0, None, True]},
}
PROBES = r"""
# Printing of objects and what macros get.
{{ range(3) }}
{{ range(1, 5) }}
{{ range(1, 5, 2) }}
{{ range(0) }}
{{ range(3)|list }}
{{ range(5)|length }}
{{ range(5)[2] }}{{ range(5)[-1] }}
{{ range(10)[2:5]|list }}
{{ range(5)|first }}{{ range(5)|last }}
{{ 3 in range(5) }}{{ 7 in range(5) }}
{{ range(3) == range(3) }}
{{ range(3)|string }}
{{ 'x' ~ range(3) }}
{{ [range(3)] }}
{{ range(5, 0, -2)|join(',') }}
{{ range(3)|reverse|list }}
{{ range(3)|tojson }}
{{ range(3)|sum }}
{% for i in range(3) %}{{ loop }}{% endfor %}
{% for i in l %}{{ loop|string }}{% endfor %}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m|string }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m.name }}
- {% macro m(a, b=2) %}{{ a }}{% endmacro %}{{ m.arguments }}
- {% macro m(a) %}{{ varargs }}{% endmacro %}{{ m(1, 2, 3) }}
{% macro m(a) %}{{ varargs|length }}{% endmacro %}{{ m(1) }}
- {% macro m(a) %}{{ kwargs }}{% endmacro %}{{ m(1, x=2) }}
- {% macro m() %}{{ varargs|join('-') }}{{ kwargs|length }}{% endmacro %}{{ m(1, 2, y=3) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, x=2) }}
{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m() }}
- {% macro m(a, b='x', c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, c=3) }}{{ m(b=2, a=4) }}
{% macro m(a, a2=none) %}{{ a2 is none }}{% endmacro %}{{ m(1) }}
{% macro m() %}{{ caller() }}!{% endmacro %}{% call m() %}x{% endcall %}
{% macro m(l) %}{% for i in l %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(i) m([1,2]) %}<{{ i }}>{% endcall %}
{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}
{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}
{% macro m() %}{{ s }}{% endmacro %}{{ m() }}
{% set q = 1 %}{% macro m() %}{{ q }}{% endmacro %}{% set q = 2 %}{{ m() }}
{% macro m() %}{% set q = 5 %}{{ q }}{% endmacro %}{{ m() }}{{ q is defined }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ [m(1), m(2)]|join }}
{% macro m(a) %} {{ a }} {% endmacro %}{{ m('x')|trim }}|{{ m('x')|length }}
{% macro m() %}{% endmacro %}{{ m() == '' }}
{% macro m(d) %}{{ d.a }}{% endmacro %}{{ m({'a': 1}) }}
{% macro m(*a) %}{{ a }}{% endmacro %}{{ m(1) }}
{{ namespace(a=1) }}
{{ namespace(a=1).a }}
{% set ns = namespace() %}{{ ns.x is defined }}{% set ns.x = 1 %}{{ ns.x }}
- {% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}
{% set ns = namespace(l=[]) %}{% for i in l %}{% set ns.l = ns.l + [i * 2] %}{% endfor %}{{ ns.l }}
{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{{ ns.n }}
{{ ns }}
{{ undefined_name }}|{{ undefined_name is undefined }}
{{ undefined_name.x }}
{{ s.nothing }}|{{ d.nothing }}|{{ none.x is defined }}
{{ [undefined_name] }}
{{ undefined_name|default('q') }}{{ d.q|default('w') }}{{ none|default('e') }}{{ ''|default('r', true) }}
{{ undefined_name == none }}{{ undefined_name == '' }}
{{ undefined_name ~ 'x' }}
{{ undefined_name|length }}
{{ undefined_name + 'x' }}
{{ 'a' in undefined_name }}
{% for x in undefined_name %}{{ x }}{% else %}none{% endfor %}
{{ undefined_name|list }}
{{ undefined_name|upper }}|
{{ not undefined_name }}
{{ undefined_name|join(',') }}|
{{ cycler('a', 'b') }}
{{ joiner(',') }}
{{ lipsum }}
{{ dict(a=1) }}{{ dict(a=1, b='x').b }}
{{ dict }}
{{ range }}
# Encoding, translating, formatting.
- {{ s.encode() }}
- {{ u.encode('utf-8') }}
- {{ u.encode('ascii', 'ignore') }}
- {{ u.encode('utf-8')|length }}
- {{ s.encode().decode() }}
- {{ s.translate({72: 'J'}) }}
- {{ s.translate({'H': 'J'}) }}
- {{ 'abc'.translate({97: none}) }}
- {{ 'abc'.maketrans('a', 'b') }}
{{ '{!r}'.format(s) }}
{{ '{!r:>8}'.format('a') }}
{{ '{!s}'.format(1) }}
{{ '{0} {1} {0}'.format('a', 'b') }}
{{ '{} {}'.format(1) }}
{{ '{a} {b}'.format(a=1, b=2) }}
{{ '{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c') }}
{{ '{:05d}'.format(42) }}
{{ '{:,}'.format(1234567) }}
{{ '{:.2f}'.format(3.14159) }}
{{ '{:.0f} {:.0f}'.format(0.5, 1.5) }}
{{ '{:e}'.format(12345.678) }}
{{ '{:g}'.format(0.0001) }}{{ '{:g}'.format(1234567.0) }}
- {{ '{:%}'.format(0.25) }}
{{ '{:x} {:X} {:o} {:b}'.format(255, 255, 8, 5) }}
{{ '{:#x}'.format(255) }}
{{ '{:+d} {: d}'.format(5, 5) }}
{{ '{:s}'.format('x') }}
{{ '{:d}'.format('x') }}
{{ '{:10.3f}|'.format(2.5) }}
{{ '{:*^9}'.format('mid') }}
{{ '{{}}'.format() }}
{{ '{0[a]}'.format(d) }}
- {{ '{0.real}'.format(1) }}
{{ '{}'.format(none) }}{{ '{}'.format(true) }}{{ '{}'.format([1, 'a']) }}{{ '{}'.format(2.0) }}{{ '{}'.format({'a': 1}) }}
{{ '{:>6}'.format(true) }}
{{ '{:>6}'.format(none) }}
{{ '{:c}'.format(65) }}
- {{ '{:n}'.format(65) }}
{{ '%s %d' % ('a', 3) }}
{{ '%5.2f|%-5s|%05d' % (1.5, 'a', 42) }}
{{ '%r' % 'a' }}
{{ '%x %X %o' % (255, 255, 8) }}
{{ '%e' % 12345.6 }}{{ '%g' % 0.00001 }}
{{ '%(a)s' % {'a': 1} }}
{{ '%%' % () }}
{{ '%s' % none }}{{ '%s' % 1.0 }}{{ '%s' % [1] }}{{ '%s' % true }}
{{ '%d' % 3.9 }}
{{ '%d' % true }}
{{ '%d' % '3' }}
{{ '%c' % 65 }}{{ '%c' % 'x' }}
{{ '%i' % 3 }}{{ '%u' % 3 }}
{{ '%+d' % 5 }}{{ '% d' % 5 }}
{{ '%s' % 'a' % () }}
{{ '%s' % ('a', 'b') }}
- {{ '%*d' % (5, 3) }}
{{ '%.3s' % 'abcdef' }}
{{ '%s and %s'|format('a', 'b') }}
{{ '%(x)s'|format(x=1) }}
{{ '{}'.format_map }}
- {{ 'http://a.b and x@y.z'|urlize }}
- {{ 'see www.example.com now'|urlize }}
- {{ 'plain text'|urlize }}
- {{ '<b>x</b> &amp; y'|striptags }}
{{ '<a&b>'|escape }}{{ '<a>'|e }}{{ '<a>'|safe }}
{{ 'a b'|urlencode }}{{ 'a/é?'|urlencode }}{{ {'a': 1, 'b': 'x y'}|urlencode }}
{{ 'hello world foo'|wordwrap(7) }}
{{ 'a b c'|wordcount }}
{{ 'abcdefghijklmnop'|truncate(10) }}
{{ 'hello big world'|truncate(10) }}{{ 'hello big world'|truncate(10, true) }}{{ 'hello big world'|truncate(10, true, '') }}
{{ 1000|filesizeformat }}{{ 1500000|filesizeformat(true) }}
{{ 'x'|center(5) }}|
{{ 'a\nb'|indent }}{{ 'a\n\nb'|indent(2, true) }}{{ 'a\n\nb'|indent(2, blank=true) }}{{ 'a\nb'|indent('> ') }}
# Sorting, arithmetic, numbers.
{{ mixed|sort }}
{{ [1, 'a']|sort }}
{{ [1, 2.5, true]|sort }}
{{ [none, 1]|sort }}
{{ ls|sort }}{{ ls|sort(case_sensitive=true) }}{{ ls|sort(reverse=true) }}{{ l|sort(true) }}
{{ people|sort(attribute='age')|map(attribute='name')|join(',') }}
{{ people|sort(attribute='city,age')|map(attribute='name')|join(',') }}
{{ people|sort(attribute='a.b')|map(attribute='name')|join(',') }}
{{ people|sort(attribute='name')|map(attribute='name')|join(',') }}
{{ [[2, 'a'], [1, 'b']]|sort }}{{ [[2, 'a'], [1, 'b']]|sort(attribute=1) }}
{{ [{'a': 1}, {'a': 0}]|sort }}
{{ [(1, 'b'), (1, 'a')]|sort }}
{{ 'cab'|sort }}
{{ d|sort }}{{ d|dictsort }}{{ {'b': 1, 'A': 2}|dictsort }}{{ {'b': 1, 'A': 2}|dictsort(true) }}{{ {'b': 1, 'A': 2}|dictsort(false, 'value') }}{{ {'b': 1, 'A': 2}|dictsort(reverse=true) }}
{{ {1: 'a', 'b': 2}|dictsort }}
{{ mixed|min }}
{{ l|min }}{{ l|max }}{{ ls|min }}{{ ls|max(case_sensitive=true) }}{{ people|max(attribute='age') }}{{ el|min }}|
{{ [true, false]|sum }}{{ l|sum }}{{ [1, 2.5]|sum }}{{ people|sum(attribute='age') }}{{ l|sum(start=10) }}{{ [[1], [2]]|sum(start=[]) }}
- {{ true + 1 }}{{ true + true }}{{ true * 3 }}{{ -true }}{{ true / 2 }}{{ true - 1 }}{{ 7 // true }}{{ 2 ** true }}{{ true % 2 }}
{{ +true }}
{{ true == 1 }}{{ false == 0 }}{{ true < 2 }}{{ true is number }}{{ true is integer }}{{ 1 is boolean }}{{ 1 is true }}{{ true is true }}
{{ [1, 2][true] }}
{{ {1: 'a'}[true] }}
{{ 'ab' * true }}
{{ 'ab' * 2 }}{{ 2 * 'ab' }}{{ [1] * 2 }}{{ 'a' * 0 }}{{ 'a' * -1 }}|
{{ 'a' + 'b' }}{{ [1] + [2] }}{{ (1,) + (2,) }}
{{ 'a' + 1 }}
{{ [1] + (2,) }}
{{ 1 + none }}
{{ 7 // 2 }}{{ -7 // 2 }}{{ 7 // -2 }}{{ 7.5 // 2 }}{{ -7.5 // 2 }}{{ 7 // 2.0 }}
{{ 7 % 3 }}{{ -7 % 3 }}{{ 7 % -3 }}{{ 7.5 % 2 }}{{ -7.5 % 2 }}
{{ 2 ** 10 }}{{ 2 ** -1 }}{{ 2 ** 0.5 }}{{ (-2) ** 2 }}{{ -2 ** 2 }}{{ 2 ** 3 ** 2 }}
{{ 2 ** 64 }}
{{ 2 ** 100 }}
{{ 10 ** 20 }}
- {{ 10 ** 40 }}
{{ 7 / 2 }}{{ 6 / 3 }}{{ 1 / 3 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 1.0 }}{{ 1e3 }}{{ 1e16 }}{{ 1e-5 }}{{ 123456789.123 }}{{ 0.1 + 0.2 }}{{ 1e100 }}{{ -0.0 }}
{{ 1_000 }}{{ 0x1f }}{{ 0b11 }}{{ 0o17 }}{{ 1.5e3 }}{{ 1E5 }}
{{ 9223372036854775807 + 1 }}
{{ 9223372036854775807 * 2 }}
{{ 99999999999999999999 }}
- {{ 340282366920938463463374607431768211456 }}
{{ big }}{{ big + 1 }}{{ big * 10 }}
{{ huge }}
{{ huge + 1 }}
{{ huge|tojson }}{{ big|tojson }}
{{ big // 7 }}{{ big % 7 }}{{ big / 2 }}
{{ big == 12345678901234567890 }}{{ big > 5 }}
{{ g }}{{ g|int }}{{ f|int }}{{ f|round }}{{ 2.567|round(2) }}{{ 3.5|round }}{{ 2.5|round(0, 'floor') }}{{ 2.1|round(method='ceil') }}{{ 5|round }}
{{ 1234.5678|round(-2) }}
{{ '3'|int }}{{ '3.7'|int }}{{ 'x'|int }}{{ 'x'|int(5) }}{{ '0x1f'|int(base=16) }}{{ ' 42 '|int }}{{ none|int }}{{ true|int }}{{ '1_000'|int }}
{{ '3.5'|float }}{{ 'x'|float }}{{ 'x'|float(1.5) }}{{ 3|float }}{{ '1e3'|float }}{{ 'inf'|float }}{{ 'nan'|float }}
- {{ -7|abs }}{{ (-7)|abs }}{{ (-2.5)|abs }}{{ true|abs }}
{{ 3|string }}{{ 3.0|string }}{{ none|string }}{{ true|string }}{{ [1]|string }}
- {{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 1 == 1 == 1 }}{{ 3 > 2 >= 2 }}{{ 1 < 2 in [2] }}
{{ 1 == 1.0 }}{{ 'a' < 'b' }}{{ [1, 2] < [1, 3] }}{{ none == none }}{{ 1 != '1' }}
{{ 'a' < 1 }}
{{ none < 1 }}
{{ [1] < [1, 'a'] }}{{ (1, 2) == [1, 2] }}
{{ 1 and 2 }}{{ 0 or 'x' }}{{ none or 0 }}{{ 'a' and '' }}|{{ not 1 }}{{ not '' }}
{{ 1 if true }}{{ 1 if false }}|{{ 'a' if n > 5 else 'b' }}{{ 1 if false else 2 if true else 3 }}
{{ (1 if false) is undefined }}
{{ 'x' if undefined_name else 'y' }}
{{ (1, 2) }}{{ (1,) }}{{ () }}{{ [] }}{{ {} }}{{ [1, 'a', none, true, 1.5] }}{{ {'a': 1, 2: 'b'} }}
- {{ 1, 2 }}
{{ {1.0: 'a', true: 'b', none: 'c'} }}
{{ {'a': 1, 'a': 2} }}
{{ "it's" }}{{ ["it's", 'a"b', 'a\'b"c'] }}{{ ['\n\t\\', 'é', '\x00', '\u200b'] }}
{{ 'a' 'b' }}{{ "\u00e9\x41\n" }}
# Slices and indices.
{{ s[0] }}{{ s[-1] }}{{ s[1:3] }}{{ s[:-1] }}{{ s[::2] }}{{ s[::-1] }}{{ s[5:1:-1] }}{{ s[100:] }}|{{ s[-3:] }}
{{ l[0] }}{{ l[-1] }}{{ l[::-1] }}{{ l[1:] }}{{ l[:-1] }}{{ l[::2] }}{{ l[5:] }}{{ l[-2:] }}
{{ l[10] }}|{{ l[10] is defined }}
{{ s[100] }}|
{{ u[0:2] }}{{ u[6] }}{{ u[-1] }}{{ u[::-1] }}
{{ (1, 2, 3)[1:] }}{{ (1, 2, 3)[::-1] }}
{{ l[none:2] }}{{ l[:none] }}
{{ s[::0] }}
{{ l['0'] }}|{{ l.0 }}
{{ d['a'] }}{{ d.a }}{{ d['b'][1] }}{{ d.b.1 }}{{ d.c.x }}{{ d['c']['x'] }}{{ d['q'] }}|{{ d.get('q', 'w') }}{{ d.get('q') }}
{{ messages[1:][0].content }}{{ messages[-1]['content'] }}{{ messages[0]['role'] }}{{ messages[::2]|map(attribute='content')|join }}
{{ n[0] }}
{{ none[0] }}
{{ d[0] }}|
{{ d[[1]] }}
{{ 'abc'[1] * 2 }}{{ ('abc')[1] }}{{ 'abc'.upper()[0] }}{{ 'a,b'.split(',')[1] }}
# Strings and their methods.
{{ s.upper() }}{{ s.lower() }}{{ s.title() }}{{ 'hello WORLD'.capitalize() }}{{ s.swapcase() }}{{ "they're bill's".title() }}{{ "they're"|title }}{{ 'hello-world foo'|title }}
{{ w.strip() }}|{{ w.lstrip() }}|{{ w.rstrip() }}|{{ 'xxaxx'.strip('x') }}{{ 'abcba'.strip('ab') }}{{ w|trim }}|{{ 'xax'|trim('x') }}
{{ s.split(', ') }}{{ w.split() }}{{ 'a,b,c'.split(',', 1) }}{{ 'a,b,c'.rsplit(',', 1) }}{{ ''.split() }}{{ ''.split(',') }}{{ 'a,,b'.split(',') }}{{ 'a b'.split(none) }}{{ 'a b c'.split(maxsplit=1) }}{{ 'a,b'.split(sep=',') }}
{{ 'a b'.split(' ', none) }}
{{ 'a'.split('') }}
{{ 'a\nb\r\nc'.splitlines() }}{{ 'a\n'.splitlines(true) }}{{ 'a\x0bb\u2028c'.splitlines() }}
{{ s.replace('l', 'L') }}{{ s.replace('l', 'L', 1) }}{{ s.replace('', '-') }}{{ s|replace('o', '0') }}{{ s|replace('l', 'L', 1) }}{{ s.replace('l', '') }}{{ 'aaa'|replace('a', 'b', -1) }}
{{ s.find('o') }}{{ s.find('zz') }}{{ s.rfind('o') }}{{ s.index('W') }}{{ s.count('l') }}{{ s.find('o', 5) }}{{ s.count('') }}
{{ s.index('zz') }}
{{ s.startswith('He') }}{{ s.endswith(('d', 'x')) }}{{ s.startswith('ello', 1) }}{{ s.startswith(['H']) }}
{{ s.startswith('') }}{{ ''.startswith('a') }}{{ s.endswith('World') }}
{{ ','.join(ls) }}{{ ','.join('abc') }}{{ ','.join(d) }}{{ ','.join([]) }}|
{{ ','.join(l) }}
{{ l|join }}{{ l|join(', ') }}{{ mixed|join(',') }}{{ people|join(', ', attribute='name') }}{{ 'abc'|join('-') }}{{ d|join }}
{{ s.center(20, '*') }}{{ '5'.zfill(3) }}{{ '-5'.zfill(4) }}{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '.') }}{{ 'a\tb'.expandtabs(4) }}
{{ s.partition(', ') }}{{ s.rpartition('x') }}{{ s.removeprefix('He') }}{{ s.removesuffix('ld') }}
{{ '12'.isdigit() }}{{ '1.2'.isdigit() }}{{ 'a1'.isalnum() }}{{ 'ab'.isalpha() }}{{ ' '.isspace() }}{{ 'Ab'.istitle() }}{{ 'AB'.isupper() }}{{ 'ab'.islower() }}{{ ''.isdigit() }}{{ 'x_1'.isidentifier() }}{{ '½'.isnumeric() }}{{ 'é'.isascii() }}{{ 'a\n'.isprintable() }}
{{ 'ß'.upper() }}{{ 'ǆ'.title() }}{{ 'İ'.lower()|length }}{{ 'Σς'.lower() }}{{ 'ΑΣ'.lower() }}{{ 'ﬁ'.upper() }}{{ 'ß'.casefold() }}{{ 'éa'|capitalize }}{{ 'ÉA'|lower }}
{{ u|length }}{{ u|upper }}{{ u.split() }}{{ u|reverse }}{{ u|list }}{{ u|first }}{{ u|last }}
{{ s|length }}{{ l|count }}{{ d|length }}{{ e|length }}
{{ n|length }}
{{ s|upper|lower|capitalize|title }}{{ 5|upper }}{{ none|upper }}{{ true|lower }}{{ [1]|upper }}
{{ s|first }}{{ s|last }}{{ l|first }}{{ l|last }}{{ el|first }}|{{ d|first }}{{ d|last }}
{{ s|reverse }}{{ l|reverse|list }}{{ l|reverse }}
{{ s|list }}{{ d|list }}{{ (1, 2)|list }}
{{ n|list }}
{{ 'a' in s }}{{ 'H' in s }}{{ '' in s }}{{ 1 in l }}{{ 'a' in d }}{{ 1 in d }}{{ 'a' not in s }}{{ not 'a' in s }}{{ none in [none] }}{{ 1.0 in [1] }}{{ true in [1] }}{{ 'Hello' in [s] }}{{ (1, 2) in [(1, 2)] }}
{{ 1 in s }}
{{ 'a' in n }}
{{ 'a' in none }}
{{ [1] in d }}
{{ s.foo() }}
{{ s.upper }}|x
{{ n.bit_length() }}{{ f.is_integer() }}{{ (4).real }}
- {{ f.hex() }}
- {{ n.to_bytes(2, 'big') }}
- {{ f.as_integer_ratio() }}
- {{ n.numerator }}{{ n.imag }}{{ f.conjugate() }}
# Lists and dicts.
{{ l.index(1) }}{{ l.count(3) }}{{ l.copy() }}
{{ l.index(9) }}
{{ l.append(4) }}
{{ l.sort() }}
{{ l.pop() }}
{% set _ = l.append(1) %}{{ l }}
{% do l.append(1) %}
{{ d.keys() }}
{{ d.values() }}
{{ d.items() }}
{{ d.keys()|list }}{{ d.values()|list }}{{ d.items()|list }}
{{ d.items()|first }}{{ d.keys()|length }}{{ d.values()|sum(start=0) is defined }}
{{ 'a' in d.keys() }}{{ 1 in d.values() }}{{ ('a', 1) in d.items() }}
{{ d.keys() == d.keys() }}
{{ d.keys()[0] }}
{{ d.keys()|sort }}{{ d.keys()|join(',') }}{{ d.items()|sort|map('first')|list }}
{{ d.update({'q': 1}) }}
{{ d.pop('a') }}
{{ d.setdefault('a', 2) }}
- {{ d.copy() }}{{ d.fromkeys(['a']) }}
{{ d.has_key('a') }}
{{ kd.items() }}{{ kd['items'] }}{{ kd.keys()|list }}{{ kd.z }}{{ kd.get('items') }}
{{ d|items|list }}{{ ed|items|list }}{{ undefined_name|items|list }}
- {{ l|items }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|dictsort %}{{ loop.index }}{{ k }}{% endfor %}
{% for k in d %}{{ k }}{% endfor %}{% for c in 'abc' %}{{ c }}{% endfor %}
{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}
- {% for a, b in ['xy'] %}{{ a }}{{ b }}{% endfor %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = b, a %}{{ a }}{{ b }}
{% set (a, b) = (1, 2) %}{{ a }}{{ b }}
{% set a, b = [1] %}{{ a }}
{% for x in l if x > 1 %}{{ x }}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% else %}e{% endfor %}
{% for x in l if x > 9 %}{{ x }}{% else %}empty{% endfor %}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}
{% for x in l %}{{ loop.previtem }}|{{ loop.nextitem }} {% endfor %}
{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}
{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}
{% for x in l %}{% if loop.first %}{% continue %}{% endif %}{{ x }}{% if x == 1 %}{% break %}{% endif %}{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{{ loop.depth }}{% endif %}{% endfor %}
{% for x in l %}{% for y in l %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}
{% for x in l %}{% set outer = loop %}{% for y in [1] %}{{ outer.index }}{% endfor %}{% endfor %}
{% for x in n %}{% endfor %}
{% for x in none %}{% endfor %}
{% for m in messages %}{% if not loop.first and messages[loop.index0 - 1].role == m.role %}!{% endif %}{{ m.role[0] }}{% endfor %}
{% for m in messages[1:] if m.role != 'system' %}{{ loop.index0 % 2 == 0 }}{% endfor %}
{% for m in messages|rejectattr('role', 'equalto', 'system') %}{{ m.content }}{% endfor %}
{% for i in range(l|length - 1, -1, -1) %}{{ l[i] }}{% endfor %}
{% set x = 1 %}{% for i in l %}{% set x = i %}{% endfor %}{{ x }}
{% if true %}{% set y = 5 %}{% endif %}{{ y }}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}
{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q is defined }}
{% set x %}a{{ n }}b{% endset %}{{ x }}{{ x|length }}{{ x is string }}
{% set x | upper %}abc{% endset %}{{ x }}
{% set x | replace('a', 'b') | upper %}aac{% endset %}{{ x }}
{% filter upper %}a{{ 'b' }}{% endfilter %}{% filter replace('a', 'x') | upper %}aab{% endfilter %}{% filter trim %}  x {% endfilter %}|
{% raw %}{{ x }}{% if %}{% endraw %}{% raw -%}  a  {%- endraw %}|
{% block b %}x{{ n }}{% endblock %}
{{ self.b() }}{% block b %}x{% endblock %}
{% autoescape true %}{{ '<' }}{% endautoescape %}
{% include 'x' %}
{% extends 'x' %}
{% import 'x' as y %}
# Filters over lists.
{{ people|groupby('city') }}
{% for g in people|groupby('city') %}{{ g.grouper }}:{{ g.list|length }}{% endfor %}
{% for c, p in people|groupby('age') %}{{ c }}{{ p|map(attribute='name')|join }}{% endfor %}
{% for c, p in people|groupby('name') %}{{ c }}{% endfor %}
{% for c, p in people|groupby('q', default='none') %}{{ c }}{{ p|length }}{% endfor %}
{% for c, p in people|groupby('a.b') %}{{ c }}{% endfor %}
{{ people|map(attribute='name')|list }}{{ people|map(attribute='q', default='w')|list }}{{ people|map(attribute='a.b')|list }}
{{ people|map(attribute='q')|list }}
{{ people|map(attribute='name') }}
{{ ls|map('upper')|list }}{{ l|map('string')|join(',') }}{{ ls|map('replace', 'b', 'x')|list }}{{ [[1, 2], [3]]|map('first')|list }}{{ ls|map('length')|sum }}{{ ['1', '2']|map('int')|sum }}
{{ l|map('nope')|list }}
- {{ l|map }}
{{ people|selectattr('age', '>', 26)|map(attribute='name')|list }}{{ people|selectattr('city', 'equalto', 'X')|list|length }}{{ people|selectattr('q', 'defined')|list }}{{ people|selectattr('name', 'in', ['Ann'])|list|length }}{{ people|selectattr('a.b', 'ge', 2)|list|length }}{{ people|rejectattr('city', 'eq', 'X')|map(attribute='name')|first }}{{ people|selectattr('name')|list|length }}
{{ people|selectattr('name', 'nope')|list }}
{{ l|select('odd')|list }}{{ l|select('>', 1)|list }}{{ l|reject('odd')|list }}{{ mixed|select|list }}{{ mixed|select('string')|list }}{{ mixed|reject('none')|list }}{{ l|select('divisibleby', 2)|list }}{{ l|select('in', [1, 2])|list }}
{{ l|select('odd') }}
{{ [1, 1, 2, 1]|unique|list }}{{ ls|unique|list }}{{ people|unique(attribute='city')|map(attribute='name')|list }}
{{ l|batch(2)|list }}{{ l|batch(2, 'x')|list }}{{ l|slice(2)|list }}{{ range(7)|slice(3, 'x')|list }}
- {{ l|random is number }}
{{ [[1, 2], [3, 4]]|map('last')|list }}{{ [[1, 2], [3, 4]]|sum(start=[])|list }}
{{ [3, 1]|sort ~ [2] }}{{ l|sort|first }}{{ l|max - l|min }}
- {{ d|attr('a') }}|{{ s|attr('upper')() }}
{{ people|first|attr('name') }}|
{{ people|map('attr', 'name')|list }}
{{ 5|pprint }}{{ d|pprint }}{{ 'a'|pprint }}
# Tests.
{{ 1 is defined }}{{ q is undefined }}{{ none is none }}{{ s is string }}{{ n is number }}{{ n is integer }}{{ f is float }}{{ l is sequence }}{{ d is mapping }}{{ l is iterable }}{{ s is iterable }}{{ d is sequence }}{{ s is sequence }}{{ n is iterable }}{{ true is boolean }}{{ false is false }}{{ s is callable }}{{ range is callable }}{{ none is sequence }}{{ none is mapping }}
{{ 2 is even }}{{ 2 is odd }}{{ 6 is divisibleby 3 }}{{ 6 is divisibleby(4) }}{{ 1 is eq 1 }}{{ 1 is ne 2 }}{{ 1 is lt 2 }}{{ 2 is ge(2) }}{{ 1 is sameas 1 }}{{ none is sameas none }}{{ 'a' is in 'abc' }}{{ 1 is in [1] }}{{ 'AB' is upper }}{{ 'ab' is lower }}{{ 'x' is escaped }}{{ 'upper' is filter }}{{ 'nope' is filter }}{{ 'odd' is test }}
{{ 1 is not none }}{{ 1 is not defined }}{{ not 1 is defined }}{{ q is not defined and true }}{{ s is string and n is number or false }}
{{ 'a' is number }}{{ '5' is number }}{{ 5.0 is integer }}{{ 5 is float }}{{ big is integer }}{{ true is integer }}{{ true is float }}{{ [] is defined }}
{{ 'a' is even }}
{{ 1 is nope }}
{{ s is match('x') }}
{{ none is undefined }}{{ d.q is undefined }}{{ d.a is defined }}{{ l[9] is undefined }}{{ messages[0].tool_calls is defined }}{{ messages[0].tool_calls is not none }}
{{ () is sequence }}{{ range(3) is sequence }}{{ range(3) is iterable }}{{ d.items() is sequence }}{{ d.keys() is iterable }}{{ (l|map('string')) is iterable }}{{ (l|map('string')) is sequence }}
{{ namespace() is mapping }}{{ dict() is mapping }}
# JSON and time.
{{ d|tojson }}{{ s|tojson }}{{ u|tojson }}{{ uni|tojson }}{{ none|tojson }}{{ true|tojson }}{{ 1.0|tojson }}{{ [1, 'a']|tojson }}{{ (1, 2)|tojson }}
{{ d|tojson(indent=2) }}
{{ el|tojson(indent=2) }}{{ ed|tojson(indent=2) }}{{ d|tojson(2) }}
{{ d|tojson(indent=none) }}{{ d|tojson(indent=0) }}{{ d|tojson(indent='\t') }}
{{ u|tojson(ensure_ascii=true) }}{{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }}{{ d|tojson(separators=(',', ':')) }}{{ d|tojson(separators=[',', ':']) }}
{{ {1: 'a', none: 'b', true: 'c', 1.5: 'd'}|tojson }}
{{ 'a'|tojson|tojson }}{{ '\u007f\u0080\u2028'|tojson }}{{ '</script>'|tojson }}{{ "'"|tojson }}
{{ undefined_name|tojson }}
{{ [undefined_name]|tojson }}
{{ range|tojson }}
{{ (l|map('string'))|tojson }}
{{ d.keys()|tojson }}
{{ tools|tojson(indent=4) }}
{{ (1e308 * 10)|tojson }}{{ 1e308 * 10 }}{{ -1e308 * 10 }}
{{ tools[0]['function']|tojson }}{{ tools[0].function.parameters.properties.x|tojson }}
{{ strftime_now('%Y-%m-%d') }}{{ strftime_now('%d %b %Y') }}{{ strftime_now('%A %B %j %U %w %p %I:%M:%S %y') }}{{ strftime_now('%-d %e|%H%%') }}
{{ strftime_now() }}
{{ strftime_now('é %Y') }}
{{ raise_exception('x') }}
{{ raise_exception }}
# White space, comments, line ends.
a\n{% if true %}\nb\n{% endif %}\nc
a\n  {% if true %}\n  b\n  {% endif %}\nc
a\n  {%- if true -%}\n  b\n  {%- endif -%}\n  c
a {%+ if true %} b {%+ endif %} c
  {%+ if true %}x{% endif +%}\ny
{% if true -%}\n\n x {%- endif %}
{{- ' a ' -}} b {{ 'c' -}}   d
a {{ 'b' }}\nc\n
a {# x #} b\n{# y #}\nc
a {#- x -#} b
a\n  {# x #}  \nb
{# a {{ b }} {% c #}x
a\r\nb\rc\n{% if true %}\r\nx{% endif %}\r\n
{{ 'a\r\nb' }}{{ 'a\rb'|length }}
{% set x = 1 -%}\n   y
\n\n{{ n }}\n\n
{% for i in l %}\n{{ i }}\n{% endfor %}\n
{% for i in l -%}\n  {{ i }},\n{%- endfor %}
\t{% if true %}\tx\t{% endif %}\t
{{ '{{' }}{{ '{%' }}{{ '#}' }}{{ "}}" }}
{%if true%}x{%endif%}{{n}}{{-n-}}
{{\nn\n}}{%\nif\ntrue\n%}x{% endif %}
{% if n == 7 %}a{% elif n == 8 %}b{% else %}c{% endif %}{% if not n %}x{% elif n is odd %}odd{% endif %}
{{ # }}
{% if %}{% endif %}
{% if n %}
{{ n
{% endif %}
{{ n }} }}{% endfor %}
{{ n|nope }}
{{ nope(1) }}
{{ 1 +  }}
{{ n | default (3) }}{{ s . upper ( ) }}{{ d [ 'a' ] }}
- {{ lipsum(1)|length > 0 }}
{{ cycler('a', 'b').next() }}{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}
{% set j = joiner(', ') %}{% for i in l %}{{ j() }}{{ i }}{% endfor %}
{{ s.__class__ }}
{{ s|attr('__class__') }}
{{ ''.__class__.__mro__ }}
{{ s['upper']() }}
{{ d['keys'] }}
- {{ loop is defined }}{{ self is defined }}{{ caller is defined }}{{ varargs is defined }}
{{ True }}{{ False }}{{ None }}{{ true }}{{ none }}
{{ messages|selectattr('role', 'equalto', 'user')|list|last|tojson }}{{ (messages|last).content }}{{ messages|map(attribute='role')|unique|join(',') }}
{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% set rest = messages[1:] if system else messages %}{{ system }}{{ rest|length }}
{% set content = '<think>a</think>b' %}{{ content.split('</think>')[-1].lstrip('\n') }}{{ content.split('</think>')[0].rstrip('\n').split('<think>')[-1] }}
{{ messages[0]['content'] is string }}{{ messages[0].content is iterable and messages[0].content is not mapping }}
{{ (messages[0].content if messages else '') ~ '|' ~ n ~ f ~ none ~ true ~ [1] }}
{{ 'a' ~ 1 + 2 }}{{ 1 ~ 2 * 3 }}{{ 'a' ~ 'b' == 'ab' }}{{ -1 ~ 'x' }}
{{ s|replace('l', 1) }}
{{ 1|replace(1, 2) }}
{{ s.replace('l', 1) }}
{{ l|join(1) }}
{{ s.count('l', 0, 3) }}{{ s.split('l', -1) }}{{ s.split(',', 0) }}{{ s.zfill(0) }}{{ s.strip(none) }}
{{ s.strip(1) }}
{{ s.upper(1) }}
{{ s.center() }}
{{ s|trim|length + 1 }}{{ (s|trim|length) * 2 }}{{ n - 1|abs }}{{ -n|abs }}{{ not n|length is defined }}
{{ [1, 2, 3][1:] + [4] }}{{ ([1] + [2])[0] }}{{ [l, ls]|map('length')|list }}{{ [[1, 2], [3]]|map('join', '-')|join(';') }}
{{ {'a': {'b': [1, {'c': 2}]}}.a.b[1].c }}{{ {'a': 1}.items()|list }}{{ {'a': 1}|length }}{{ {} or 'e' }}
{{ {**d} }}
{{ [*l] }}
{{ dict(**d).a }}{{ dict(d, q=1)|length }}
{{ [x for x in l] }}
{{ l.0.real }}
{{ lambda x: x }}
{{ n if n else }}
{{ 1 is in(l) }}{{ 3 not in l }}{{ 'a' not in 'b' }}{{ not (1 in l and 2 in l) }}
{{ (n > 3) + 1 }}{{ (n > 3) ~ '' }}{{ n > 3 and f < 3 }}{{ [n > 3, none] }}
{{ n.real + 1 }}{{ (n + f)|round(1) }}{{ (n / 2)|int }}{{ (n / 2)|round|int }}{{ '%.1f' % f }}{{ '%.2f'|format(f) }}{{ f|string|length }}
{% set x = [] %}{% for i in l %}{% set x = x + [i] %}{% endfor %}{{ x }}
{% set t = tools[0] %}{% for k, v in t.function.parameters.properties.items() %}{{ k }}: {{ v.type }}{% if not loop.last %}, {% endif %}{% endfor %}
{%- set a = namespace(x='') -%}{%- for p in 'a-b'.split('-') -%}{%- set a.x = a.x ~ p|upper -%}{%- endfor -%}{{ a.x }}
# Values that can be read once, and views.
{% set x = l|map('string') %}{{ x|join(',') }}|{{ x|join(',') }}
{% set x = people|selectattr('age', '>', 99) %}{% if x %}true{% endif %}{{ x|list }}
{% set x = people|selectattr('age', '>', 99)|list %}{% if x %}true{% else %}false{% endif %}
{% set x = l|select('odd') %}{{ x|first }}{{ x|list }}
{{ l|select('odd')|length }}
{{ (l|map('string'))[0] }}|{{ (l|map('string'))[1:] }}|
{% for x in l|select('odd') %}{{ x }}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{% endfor %}
{% set g = l|map('string') %}{% for a in g %}{% for b in g %}{{ a }}{{ b }} {% endfor %}{% endfor %}
{{ 1 in (l|select('odd')) }}{{ (l|map('string')) is defined }}
{{ l|reverse|first }}{{ l|reverse|list|last }}{{ (l|reverse)|join }}
{{ d.items()|length }}{{ d.values()|list|last }}{{ ed.items() is defined }}{% if ed.items() %}x{% else %}y{% endif %}
{{ d.keys()|last }}{{ d.keys()|first }}{{ d.items()|last }}
{{ d.keys()|reverse|list }}{{ d.items()|map('last')|list }}{{ d.keys()|map('upper')|join }}
{% set k = d.keys() %}{{ k|join(',') }}{{ k|join(',') }}{{ k|length }}
{{ d.keys()[1:] }}|
{{ d.values()|list|tojson }}{{ d.items()|list|tojson }}
{{ ns is defined }}{% set ns = namespace(x=l|map('string')) %}{{ ns.x|join }}{{ ns.x|join }}|
{{ [l|map('string')]|length }}
{{ l|map('string')|map('int')|sum }}{{ l|map('string')|sort|join }}{{ l|batch(2)|map('first')|list }}
{{ people|map(attribute='name')|map('lower')|select('in', ['ann'])|list }}
{{ people|groupby('city')|map('first')|list }}{{ people|groupby('city')|length }}
{{ range(3) is sequence }}{{ range(0, 10, 3)|list }}{{ range(10, 0, -3)|list }}{{ range(3)[1:]|list }}{{ range(2)|map('string')|join }}{{ 'x' if range(0) else 'y' }}
{{ range(-1) }}{{ range(-1)|list }}{{ range(3, 1)|length }}
{{ range(1, 2, 0) }}
{{ range(2.0) }}
{{ range('3') }}
{{ range() }}
{{ range(100001)|length }}
{{ l|unique|length }}
{{ l|unique|join }}{{ (l|batch(2))|list|length }}
{{ none|list }}
{{ l|last }}{{ (l|map('string'))|last }}
{{ s|map('upper')|join }}{{ d|map('upper')|join }}
{{ undefined_name|map('upper')|list }}{{ undefined_name|selectattr('a')|list }}{{ undefined_name|sort }}{{ undefined_name|reverse|list }}
{{ l|sort(reverse=true)|first }}{{ l|sort|list is sequence }}
{{ ls|sort(true, true) }}{{ people|sort(false, false, 'age')|map(attribute='name')|list }}
{{ people|sort(attribute='q') }}
{{ people|min(attribute='age') }}{{ people|max(attribute='name') }}{{ ls|max }}{{ 'hello'|max }}{{ d|min }}
{{ [1, 1.0, true]|max }}{{ ['b', 'B']|min }}{{ ['B', 'b']|min }}
{{ people|sort }}
{{ [[1, none], [1, none]]|sort }}
{{ [(1, 'a'), (1, none)]|sort }}
{{ 5|sort }}
{{ 2.5 is odd }}{{ true is odd }}{{ 3.0 is odd }}{{ -1 is odd }}{{ 0 is even }}{{ 7 is divisibleby(3.5) }}
{{ none is odd }}
{{ 5 is divisibleby 0 }}
{{ +5 }}{{ +2.5 }}{{ n - +1 }}{{ +n }}
{{ +s }}
{{ +none }}
{{ n.real }}{{ n.imag }}{{ f.real }}{{ f.imag }}{{ n.denominator }}{{ true.real }}
{{ {'real': 5}.real }}{{ d.real }}|{{ people[0].real is defined }}
{{ f.numerator is defined }}
{{ kd['items'] }}{{ kd['values'] is callable }}{{ d['get']('a') }}{{ d['items']()|list|length }}{{ s['split'](',')|length }}
{{ 'T' if d['items'] else 'F' }}{{ d['items'] is mapping }}{{ d['items'] is defined }}{{ d['nothing'] is defined }}
{% set k = 'items' %}{{ 'T' if d[k] else 'F' }}{{ kd[k] }}
{% for k in ['a', 'q'] %}{{ d[k] }}{{ d[k] is defined }}{% endfor %}{% for i in [0, 1] %}{{ l[i] }}{{ messages[i]['role'] }}{{ messages[i][k] }}{% endfor %}
{{ l['append'] is defined }}{{ l['count'](3) }}{{ l[n] is defined }}{{ l[-1] }}{{ l[-n] is defined }}{{ l[l[0] - 1] }}
{{ {'a': 1}['a'] }}{{ [[1, 2], [3]][0][1] }}{{ messages[n - 7].role }}{{ messages[(n - 6)]['content'] }}{{ d['b'][d['a']] }}
{{ '{}{}'.format(1, 2) }}{{ '{0}{0}'.format(1) }}{{ '{a}{}'.format(1, a=2) }}{{ '{:{}}|'.format('x', 4) }}{{ '{:>{w}}'.format('x', w=4) }}{{ '{!s:>4}'.format(1) }}{{ '{[a]}'.format(d) }}{{ '{[0]}'.format(l) }}{{ '{d[c]}'.format(d=d) }}
{{ '{}{0}'.format(1) }}
{{ '{0}{}'.format(1) }}
{{ '{'.format() }}
{{ '}'.format() }}
{{ '{a}'.format(1) }}
{{ '{}'.format() }}
{{ '{!x}'.format(1) }}
{{ '{:>5}'.format([1]) }}
{{ '{:5}|{:5}|{:<5}|'.format(1, 'a', 2) }}{{ '{:.3}'.format('abcdef') }}{{ '{:.3}'.format(3.14159) }}{{ '{:5.1f}|'.format(2) }}{{ '{:d}'.format(true) }}{{ '{}'.format(1e20) }}{{ '{:,.2f}'.format(1234.5) }}{{ '{:_}'.format(1234567) }}
{{ '{:.2f}'.format('x') }}
{{ '{:.2d}'.format(1) }}
{{ 'a{}b'.format('{}') }}{{ '{}'.format('{0}') }}{{ '{{{}}}'.format(1) }}{{ '{:^7}'.format('{a}') }}
{{ '%s %s'|format(1, 2) }}{{ '%d%%'|format(5) }}{{ '%(a)s-%(b)d'|format(a='x', b=2) }}
{{ '%s'|format }}
{{ '%d' % -3.9 }}{{ '%i' % 2.5 }}{{ '%d' % 1e10 }}{{ '%5d|%-5d|%05d' % (1, 2, 3) }}
{{ s|replace('l', none) }}{{ 123|replace('2', 'x') }}{{ s|replace('l', 'L', count=1) }}
{{ s.ljust(15) }}|{{ s.rjust(width=15) }}
{{ s.split(none) }}{{ s.split('o', 1) }}{{ s.rsplit(none, 1) }}{{ ' a  b '.split(' ') }}
{{ 'x'|striptags }}{{ '<p>a\n b</p><!-- c -->d'|striptags }}
{% macro m(a, b='a') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}
{% macro m(a, b=n) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}
{% macro m(name, type='name') %}{{ name }}{{ type }}{% endmacro %}{{ m(1) }}
{% macro m(arguments) %}{{ arguments.a }}{% endmacro %}{{ m(d) }}{{ messages[0].arguments is defined }}
{% macro show(x) -%}{%- if x is mapping -%}{%- for k, v in x.items() -%}{{ k }}:{{ show(v) }};{%- endfor -%}{%- elif x is iterable and x is not string -%}[{%- for i in x -%}{{ show(i) }}{{ ',' if not loop.last }}{%- endfor -%}]{%- else -%}{{ x }}{%- endif -%}{%- endmacro -%}{{ show(d) }}
{% for k, v in d.items() if k != 'a' %}{{ k }}{{ loop.length }}{% endfor %}{% for k, v in (d.items()|list)[1:] %}{{ k }}{% endfor %}
{% for k, v in d.items()|sort %}{{ k }}{% endfor %}{% for k, v in d.items()|list|reverse %}{{ k }}{% endfor %}
{% for k in d.keys()|sort(reverse=true) %}{{ k }}{% endfor %}{% for v in d.values() %}{{ v }}{{ loop.last }}{% endfor %}
{% for x in l|reverse %}{{ x }}{{ loop.index }}{{ loop.last }}{% endfor %}{% for m in messages|reverse %}{{ m.role[0] }}{% endfor %}
{% set idx = namespace(v=-1) %}{% for m in messages[::-1] %}{% set i = messages|length - 1 - loop.index0 %}{% if idx.v == -1 and m.role == 'user' %}{% set idx.v = i %}{% endif %}{% endfor %}{{ idx.v }}
{% if messages|selectattr('role', 'equalto', 'nobody') %}yes{% else %}no{% endif %}
{% if messages|selectattr('role', 'equalto', 'nobody')|list %}yes{% else %}no{% endif %}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}
{{ (messages|selectattr('role', 'equalto', 'user')|first).content }}{{ (messages|map(attribute='content')|list)[-1] }}{{ messages|map(attribute='content')|first }}
{{ messages|rejectattr('role', 'in', ['system', 'user'])|map(attribute='content')|join(', ') }}
{{ loop }}
{% for i in [1] %}{{ loop is mapping }}{{ loop is defined }}{% endfor %}
{{ namespace(a='x', b=[1]) }}{{ namespace() }}{% set ns = namespace(a=1) %}{{ ns ~ '' }}{{ ns|string }}
{% macro m() %}{% endmacro %}{{ m is callable }}{{ m is defined }}{{ [m is callable] }}{{ m ~ 'x' }}
{{ dict|string is string }}{{ range is callable }}{{ lipsum is callable }}
- {{ (l|map('string'))|string is string }}{{ (l|map('string')) == (l|map('string')) }}
- {{ self }}
"""


def probes():
    for line in PROBES.strip("\n").split("\n"):
        if line.startswith("# "):
            continue
        refused = line.startswith("- ")
        # Escapes inside strings of a template are the template's own.
        text = re.sub(r"('[^']*'|\"[^\"]*\")|\\[nrt]", lambda m: m.group(1) or {"n": "\n", "r": "\r", "t": "\t"}[m.group()[1]], line[2 * refused:])
        yield text, refused


def rendered(source):
    try:
        return chat_template_utils._compile_jinja_template(source).render(**CONTEXT)
    except Exception:
        return None


def main():
    probes_with_text = []
    for source, refused in probes():
        text = rendered(source)
        # Addresses in memory differ from run to run.
        text = text and re.sub(r"at 0x[0-9a-f]{6,}", "at 0x7f0000000000", text)
        assert text is not None or not refused, source
        probes_with_text.append({"template": source, "text": text, **({"refused": True} if refused else {})})
    json.dump({"context": CONTEXT, "probes": probes_with_text}, sys.stdout, ensure_ascii=False, indent=1)
    print()


if __name__ == "__main__":
    main()
