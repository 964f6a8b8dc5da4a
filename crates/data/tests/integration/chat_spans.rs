//! Loss spans of real templates, which have no `{% generation %}`.

use crate::chat_goldens::{conversation, goldens, tokens};
use hone_data::ChatTemplate;

const TURN_ENDS: [&str; 20] = [
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
    "<|user|>",
    "<|observation|>",
];

#[test]
fn explore() {
    let Some(shared) = crate::shared() else { return };
    let goldens = goldens();
    for (file, expected) in goldens["templates"].as_object().unwrap() {
        let path = shared.join("data/chat-templates").join(file);
        let source = std::fs::read_to_string(path).unwrap();
        let added = TURN_ENDS.iter().map(|t| t.to_string()).collect();
        let template = ChatTemplate::new(&source, None, tokens(&goldens, added)).unwrap();
        for (case, want) in expected.as_object().unwrap() {
            if want == "raises" || case.ends_with("+prompt") {
                continue;
            }
            let conversation = conversation(&goldens["conversations"][case]);
            match template.render_with_spans(&conversation, &[true]) {
                Err(_) => println!("{file} {case} FAIL"),
                Ok(r) => {
                    let spans = r.spans.iter().map(|s| &r.text[s.clone()]).collect::<Vec<_>>();
                    println!("{file} {case} {spans:?}");
                }
            }
        }
    }
}
