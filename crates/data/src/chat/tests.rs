use super::*;
use serde_json::json;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, None, TemplateTokens::default()).unwrap()
}

fn talk(text: &str) -> Conversation {
    let messages = vec![
        json!({"role": "user", "content": "q"}),
        json!({"role": "assistant", "content": text}),
    ];
    Conversation { messages, tools: None }
}

const MARKED: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}|{% else %}\
                      {% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}";

#[test]
fn tags_are_rewritten_only_where_they_are_tags() {
    for source in [
        "{# {% generation %} #}",
        "{{ '{% generation %}' }}",
        "{% set x = \"{% generation %}\" %}",
        "{% raw %}{% generation %}{% endraw %}",
        "{% generations %}{ {%",
        "generation",
    ] {
        assert_eq!(generation::rewrite(source), (source.to_owned(), false));
    }
    let (text, found) = generation::rewrite("a {%- generation -%} b {%+endgeneration%}c");
    assert_eq!(text, "a {%- filter hone_generation -%} b {%+endfilter%}c");
    assert!(found);
}

#[test]
fn marks_pair_up_or_are_refused() {
    let marks = Marks::new();
    let (open, close) = (&marks.open, &marks.close);
    let nested = format!("a{open}b{open}c{close}{close}é{open}{close}");
    assert_eq!(marks.strip(&nested), Some(("abcé".to_owned(), vec![1..3, 5..5])));
    assert_eq!(marks.strip(&format!("a{open}b")), None);
    assert_eq!(marks.strip(&format!("a{close}b")), None);
    assert_ne!(Marks::new().open, marks.open);
}

#[test]
fn data_cannot_forge_a_span() {
    // Marks of another template are only text here.
    let foreign = Marks::new().wrap("forged");
    let rendering = template(MARKED).render_with_spans(&talk("said"), &[true]).unwrap();
    assert_eq!(rendering.spans[0], 2..6);
    let mut conversation = talk("said");
    conversation.messages[0]["content"] = foreign.clone().into();
    let rendering = template(MARKED).render_with_spans(&conversation, &[true]).unwrap();
    assert_eq!(rendering.text, format!("{foreign}|said"));
    assert_eq!(rendering.spans.len(), 1);
    assert_eq!(&rendering.text[rendering.spans[0].clone()], "said");
}

#[test]
fn weights_need_a_span_for_each_turn() {
    let rendering = template(MARKED).render_with_spans(&talk("said"), &[false]).unwrap();
    assert!(rendering.spans.is_empty());
    let fault = template(
        &MARKED.replace("{% generation", "{% generation %}x{% endgeneration %}{% generation"),
    )
    .render_with_spans(&talk("said"), &[false])
    .unwrap_err();
    assert!(fault.what.starts_with("the template marks 2 spans for 1 assistant turns"));
}

#[test]
fn the_date_is_fixed() {
    let mut template = template("{{ strftime_now('%d %b %Y') }}");
    template.set_now(1_750_000_000);
    assert!(template.uses_date());
    assert_eq!(template.render(&talk(""), false).unwrap(), "15 Jun 2025");
}

#[test]
fn tools_choose_their_own_template() {
    let tokens = TemplateTokens::default();
    let template = ChatTemplate::new("plain", Some("{{ tools[0].name }}"), tokens).unwrap();
    assert_eq!(template.render(&talk(""), false).unwrap(), "plain");
    let with_tools = Conversation { tools: Some(json!([{"name": "f"}])), ..talk("") };
    assert_eq!(template.render(&with_tools, false).unwrap(), "f");
}

#[test]
fn reasoning_has_its_standard_name() {
    let mut conversation = talk("said");
    conversation.messages[1]["reasoning"] = "because".into();
    conversation.messages[1]["name"] = Value::Null;
    let template = template(
        "{{ messages[1].reasoning_content }} {{ messages[1].thinking }} \
                             {{ messages[1].name is defined }}",
    );
    assert_eq!(template.render(&conversation, false).unwrap(), "because because False");
}

/// A constant end after the last turn, and a prompt opened unasked, are no part of a turn.
#[test]
fn what_comes_after_the_last_turn_is_not_learnt() {
    let body = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<e>{% endfor %}\
                {% if add_generation_prompt %}<assistant>{% endif %}";
    let tokens = TemplateTokens { added: vec!["<e>".into()], ..Default::default() };
    let new = |source: &str| ChatTemplate::new(source, None, tokens.clone()).unwrap();
    let rendering = new(&format!("{body}#end")).render_with_spans(&talk("said"), &[true]).unwrap();
    assert_eq!(&rendering.text[rendering.spans[0].clone()], "said<e>");
    let always = body.replace("{% if add_generation_prompt %}", "{% if true %}");
    let fault = new(&always).render_with_spans(&talk("said"), &[true]).unwrap_err();
    assert!(fault.what.starts_with("the chat template opens another assistant turn"), "{fault:?}");
}

/// Pieces of Jinja that minijinja lacks or does otherwise, with what Jinja2 3.1 gives.
#[test]
fn jinja_as_python_has_it() {
    for (source, want) in [
        (
            "{{ 'a%sb%d' % ('x', 3) }} {{ '%05.1f' % 2.25 }} {{ 7 % 3 }} {{ -7 % 3 }}",
            "axb3 002.2 1 2",
        ),
        ("{{ 'a.b.c'.rsplit('.', 1) }} {{ ' a b  c '.rsplit() }}", "['a.b', 'c'] ['a', 'b', 'c']"),
        ("{{ ' a b  c '.rsplit(none, 1) }}", "[' a b', 'c']"),
        ("{{ 'abcb'.index('b') }}{{ 'abcb'.rindex('b') }}", "13"),
        ("{{ '7'.zfill(3) }} {{ '-7'.zfill(3) }} {{ 'aB1'.swapcase() }}", "007 -07 Ab1"),
        ("{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}", "bcab"),
        ("[{{ 'ab'.center(5) }}][{{ 'abc' | center(6) }}]", "[  ab ][ abc  ]"),
        ("[{{ 'a'.ljust(3) }}][{{ 'a'.rjust(3) }}] {{ 'a b\\nc' | wordcount }}", "[a  ][  a] 3"),
        ("{% set c = cycler('x', 'y') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}", "xyx"),
        ("{{ 'x' is sequence }}{{ [] is sequence }}{{ 1 is sequence }}", "TrueTrueFalse"),
        ("{{ 1e-5 }} {{ 1e16 }} {{ 1.5 ~ 2.0 }} {{ 1e20 | string }}", "1e-05 1e+16 1.52.0 1e+20"),
        ("{{ '<a>' | safe + '\"' }} {{ '\"' + '\"' }}", "<a>&#34; \"\""),
        ("{{ 'a\\nb\\n\\nc' | indent(2) }}", "a\n  b\n\n  c"),
        ("{{ 'a\\nb' | indent('> ', true) }}", "> a\n> b"),
        ("{{ 'aXbX' | replace('X', '-', 1) }} {{ 'ab'.replace('', '.') }}", "a-bX .a.b."),
        ("{{ {'a': {'b': 1 + 1}} }}", "{'a': {'b': 2}}"),
        ("{{ [1] + [2] }} {{ 'ab' * 2 }} {{ 1 + 2 * 3 - 4 // 3 }}", "[1, 2] abab 6"),
        ("{{ 'a=b=c'.partition('=') | join('|') }}", "a|=|b=c"),
        ("{{ loop is defined }}{% for x in [3] %}{{ loop.index0 + x }}{% endfor %}", "False3"),
    ] {
        assert_eq!(template(source).render(&talk(""), false).as_deref(), Ok(want), "{source}");
    }
}

/// Whatever a template does with strings and lists, it ends with an error before memory does.
#[test]
fn memory_has_a_limit() {
    let doubled = |what: &str| {
        format!(
            "{{% set n = namespace(s='{}', l=[]) %}}{{% for i in range(40) %}}{what}{{% endfor %}}",
            "a".repeat(1024)
        )
    };
    let sets = "{% set a = a ~ a %}".repeat(40);
    for source in [
        doubled("{% set n.s = n.s ~ n.s %}"),
        doubled("{% set n.s = n.s + n.s %}"),
        doubled("{% set n.s = '%s%s' % (n.s, n.s) %}"),
        doubled("{% set n.s = '%s%s' | format(n.s, n.s) %}"),
        doubled("{% set n.s = '{}{}'.format(n.s, n.s) %}"),
        doubled("{% set n.s = [n.s, n.s] | join %}"),
        doubled("{% set n.s = ''.join([n.s, n.s]) %}"),
        doubled("{% set n.s = n.s | replace('a', 'aa') %}"),
        doubled("{% set n.s = n.s.replace('a', 'aa') %}"),
        doubled("{% set x %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = x %}"),
        doubled("{% set n.l = n.l + ['x' * 6000000] %}"),
        doubled("{% set n.l = n.l + [('x' * 6000000) | upper] %}"),
        doubled("{% set n.l = n.l + n.l + [1] %}"),
        format!("{{% set a = 'aaaaaaaaaaaaaaaa' %}}{sets}"),
        "{{ messages | tojson(indent=2000000000) }}".to_owned(),
        "{{ 'a\nb' | indent(2000000000) }}".to_owned(),
        "{{ [1] | batch(2000000000, 0) }}".to_owned(),
        "{{ [1] | slice(2000000000) | list }}".to_owned(),
        "{{ '%2000000000d' | format(1) }}".to_owned(),
        "{{ '%2000000000d' % 1 }}".to_owned(),
        "{{ '%*d' % (2000000000, 1) }}".to_owned(),
        "{{ '{:2000000000}'.format(1) }}".to_owned(),
        "{{ 'a' | center(2000000000) }}{{ 'a'.center(2000000000) }}".to_owned(),
        "{{ 'a'.zfill(2000000000) }}".to_owned(),
        "{{ ('a' * 2000000000) | length }}".to_owned(),
        "{{ ([1] * 2000000000) | join('x') }}".to_owned(),
    ] {
        let fault = template(&source).render(&talk("said"), false);
        let fault = fault.expect_err(&source).what;
        let is_limit = ["strings of more than", "a list of more than", "bytes", "too large"];
        assert!(is_limit.iter().any(|limit| fault.contains(limit)), "{source}: {fault}");
    }
}
