//! Modules that no gradient reaches are named.

use crate::fixture::{LORA, Scene, carry_out, clear};
use hone_train::recipe::{Event, Options};

/// Of two blocks with an adapter on the values, the first one's output counts for nothing.
#[test]
fn a_module_without_a_gradient_is_named_after_twenty_steps() {
    let scene = Scene::new("tied_gqa");
    let file = scene.dir.path().join("model/model.safetensors");
    clear(&file, "model.layers.0.self_attn.o_proj.weight");
    let more = ["adapter.target_modules = v_proj", "train.max_steps = 22", "report.samples = 0"];
    let setup = scene.setup(&[&LORA[..], &more].concat());
    let (mut named, mut notes) = (Vec::new(), Vec::new());
    let mut event = |event: Event<'_>| match event {
        Event::Step(record) => {
            named.extend(record.no_gradient.iter().map(|module| (record.step, module.clone())));
        }
        Event::Note { text } if text.contains("no_gradient") => notes.push(text),
        _ => {}
    };
    carry_out(&setup, Options::default(), &mut event, &|| false).unwrap();
    let module = "model.layers.0.self_attn.v_proj";
    assert_eq!(named, [(20, module.to_owned())]);
    assert!(notes.len() == 1 && notes[0].starts_with(module), "{notes:?}");
}
