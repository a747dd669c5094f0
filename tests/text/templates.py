"""Chat templates as the releases write them, in short and in our own words: the formats are facts.

V2          BOS system\n\nUser: question\n\nAssistant: answer EOS User: ...
V3          BOS system <｜User｜>question<｜Assistant｜>answer EOS
R1          V3, the reasoning of earlier answers cut off, `<think>\n` opened at the end
first R1    R1 without opening `<think>`: the model writes it
V3.1        V3 with `<think>` or `</think>` after <｜Assistant｜>, by the variable `thinking`
V3_TOOLS  V3 with tools: what V3-0324 and R1-0528 write for calls and results
"""

V2 = """{{ bos_token }}{% for m in messages -%}
{%- if m.role == 'user' %}{{ 'User: ' + m.content + '\\n\\n' }}
{%- elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}
{%- elif m.role == 'system' %}{{ m.content + '\\n\\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

_SYSTEM = """{%- set ns = namespace(system='') -%}
{%- for m in messages if m.role == 'system' -%}
{%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + m.content -%}
{%- endfor -%}{{ bos_token + ns.system }}"""

V3 = (
    _SYSTEM
    + """{%- for m in messages -%}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content + eos_token }}{% endif -%}
{%- endfor -%}{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""
)

R1_FIRST = V3.replace("m.content + eos_token", "m.content.split('</think>')[-1] + eos_token")
R1 = R1_FIRST.replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>\\n' }}")

V3_TOOLS = (
    _SYSTEM
    + """{%- if tools %}{{ '\\n\\n## Tools\\n' }}{% for t in tools %}{{ t.function | tojson }}{% endfor %}{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'tool' %}{{ '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + m.content }}
{{- '<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' }}
{%- elif m.role == 'assistant' -%}
{%- if m.tool_calls %}{{ '<｜Assistant｜>' + (m.content or '') + '<｜tool▁calls▁begin｜>' }}{% for c in m.tool_calls -%}
{{ '\\n' if not loop.first else '' }}{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + c.function.name }}
{{- '\\n```json\\n' + c.function.arguments + '\\n```<｜tool▁call▁end｜>' }}{% endfor -%}
{{ '<｜tool▁calls▁end｜>' + eos_token }}
{%- else %}{{ '<｜Assistant｜>' + m.content + eos_token }}{% endif -%}
{%- endif -%}{%- endfor -%}{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""
)

V31 = (
    "{%- if thinking is not defined %}{% set thinking = false %}{% endif -%}"
    + _SYSTEM
    + """{%- if tools %}{{ '\\n\\n## Tools\\n' }}{% for t in tools -%}
{{ t.function | tojson }}{% endfor %}{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
{%- elif m.role == 'assistant' -%}
{%- if m.tool_calls %}{{ '<｜Assistant｜></think>' + (m.content or '') + '<｜tool▁calls▁begin｜>' }}
{%- for c in m.tool_calls -%}
{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' }}{{ c.function.arguments | tojson }}
{{- '<｜tool▁call▁end｜>' }}{% endfor %}{{ '<｜tool▁calls▁end｜>' + eos_token }}
{%- else %}{{ '<｜Assistant｜></think>' + m.content.split('</think>')[-1] + eos_token }}{% endif -%}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{% endif %}"""
)
