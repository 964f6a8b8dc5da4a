//! Loss spans of real templates, which have no `{% generation %}`.

use crate::chat_goldens::{conversation, goldens, tokens};
use hone_data::ChatTemplate;
use serde_json::Value;
use std::collections::BTreeMap;

const TURN_ENDS: [&str; 21] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "</s>",
    "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>",
    "<|END_RESPONSE|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|assistant_end|>",
    "<seed:eos>",
    "<eos>",
    "<|role_end|>",
    "<|message_sep|>",
    "<sep>",
    "<|END_TEXT|>",
];

/// A template that opens an assistant turn at the end even where none is asked for: all refused.
const ALWAYS_PROMPTS: &str = "CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja";
const ALL_CALLS: &[&str] = &["tool_call", "tool_call_null_content", "tool_calls_parallel"];

/// Conversations whose spans cannot be found exactly, which is an error: tool calls in templates
/// that drop them or write them differently once more turns follow, and one first turn.
const REFUSED: [(&str, &[&str]); 25] = [
    ("Apriel-1.6-15b-Thinker-fixed.jinja", ALL_CALLS),
    ("Cohere2MoE.jinja", ALL_CALLS),
    ("GLM-4.7-Flash.jinja", &["tool_call", "tool_call_null_content"]),
    ("GigaChat3-10B-A1.8B.jinja", &["tool_calls_parallel"]),
    ("GigaChat3.1-10B-A1.8B.jinja", &["tool_calls_parallel"]),
    ("HuggingFaceTB-SmolLM3-3B.jinja", ALL_CALLS),
    ("LFM2-8B-A1B.jinja", &["tool_call", "tool_calls_parallel"]),
    ("LFM2.5-Instruct.jinja", &["tool_call", "tool_calls_parallel"]),
    ("Mistral-Small-3.2-24B-Instruct-2506.jinja", &["tool_call_null_content"]),
    ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja", &["tool_call", "tool_call_null_content"]),
    ("Qwen-QwQ-32B.jinja", &["tool_call"]),
    ("Qwen3.5-4B.jinja", &["tool_call_null_content", "assistant_first"]),
    ("StepFun3.5-Flash.jinja", &["tool_call_null_content"]),
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", &["tool_call", "tool_calls_parallel"]),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", &["tool_call", "tool_calls_parallel"]),
    ("deepseek-ai-DeepSeek-V3.1.jinja", &["tool_call", "tool_calls_parallel"]),
    ("deepseek-ai-DeepSeek-V3.2.jinja", &["tool_call", "tool_call_null_content"]),
    ("google-gemma-4-31B-it-interleaved.jinja", ALL_CALLS),
    ("google-gemma-4-31B-it.jinja", ALL_CALLS),
    ("ibm-granite-granite-3.3-2B-Instruct.jinja", &["tool_call", "tool_calls_parallel"]),
    ("llama-cpp-rwkv-world.jinja", ALL_CALLS),
    ("microsoft-Phi-3.5-mini-instruct.jinja", &["tool_call", "tool_calls_parallel"]),
    ("mistralai-Mistral-Nemo-Instruct-2407.jinja", &["tool_call_null_content"]),
    ("openai-gpt-oss-120b.jinja", &["tool_calls_parallel"]),
    ("stepfun-ai-Step-3.5-Flash.jinja", &["tool_call_null_content"]),
];

fn message_text(message: &Value) -> &str {
    let content = message["content"].as_str().unwrap_or_default();
    content.rsplit("</think>").next().unwrap_or_default().trim()
}

/// What is wrong with a turn's span, if anything.
fn complaint(span: &str, message: &Value) -> Option<String> {
    let text = message_text(message);
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    let mut names = calls.map(|call| call["function"]["name"].as_str().unwrap());
    let is_whole = names.all(|name| span.contains(name))
        && (message.get("tool_calls").is_some() || span.contains(text));
    // After the text come only marks of the turn's end.
    let mut rest = span.trim_end();
    while let Some(shorter) = TURN_ENDS.iter().find_map(|end| rest.strip_suffix(end)) {
        rest = shorter.trim_end();
    }
    let ends_well = message.get("tool_calls").is_some() || rest.ends_with(text);
    (!is_whole || !ends_well).then(|| format!("{span:?} for {text:?}"))
}

#[test]
fn spans_hold_each_turn_and_its_end() {
    let Some(shared) = crate::shared() else { return };
    let goldens = goldens();
    let mut wrong = Vec::new();
    let mut refused = BTreeMap::<&str, Vec<&str>>::new();
    for (path, expected) in goldens["templates"].as_object().unwrap() {
        let Some(file) = path.strip_prefix("chat-templates/") else { continue };
        let path = shared.join("data").join(path);
        let source = std::fs::read_to_string(path).unwrap();
        let added = TURN_ENDS.iter().map(|t| t.to_string()).collect();
        let template = ChatTemplate::new(&source, None, tokens(&goldens, added)).unwrap();
        let cases = expected.as_object().unwrap().iter();
        for (case, _) in cases.filter(|(c, want)| *want != "raises" && !c.ends_with("+prompt")) {
            let conversation = conversation(&goldens["conversations"][case]);
            let turns = conversation.messages.iter().filter(|m| m["role"] == "assistant");
            let Ok(rendering) = template.render_with_spans(&conversation, &[true]) else {
                refused.entry(file).or_default().push(case);
                continue;
            };
            assert_eq!(rendering.spans.len(), turns.clone().count());
            for (span, message) in rendering.spans.iter().zip(turns) {
                let complaint = complaint(&rendering.text[span.clone()], message);
                wrong.extend(complaint.map(|c| format!("{file} {case}: {c}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(refused.remove(ALWAYS_PROMPTS).map(|cases| cases.len()), Some(15));
    let known = REFUSED.iter().map(|(file, cases)| (*file, cases.to_vec()));
    assert_eq!(refused, known.collect::<BTreeMap<_, _>>());
}

#[test]
fn generation_blocks_as_transformers_has_them() {
    let goldens = goldens();
    for golden in goldens["generation"].as_array().unwrap() {
        let source = golden["template"].as_str().unwrap();
        let template = ChatTemplate::new(source, None, tokens(&goldens, Vec::new())).unwrap();
        for (case, want) in golden["cases"].as_object().unwrap() {
            let conversation = conversation(&goldens["conversations"][case]);
            let rendering = template.render_with_spans(&conversation, &[true]).unwrap();
            assert_eq!(want["text"], rendering.text, "{case} of {source}");
            let spans = rendering.spans.iter().map(|s| [s.start, s.end]).collect::<Vec<_>>();
            assert_eq!(want["spans"], serde_json::json!(spans), "{case} of {source}");
        }
    }
}
