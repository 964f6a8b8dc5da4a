//! Tasks that come with Hone, by name, and forms of Python functions that well-known tasks call.

use std::path::Path;

/// Names and texts; the files are in `crates/eval/tasks`.
const TASKS: [(&str, &str); 11] = [
    ("arc_challenge", include_str!("../../tasks/arc_challenge.yaml")),
    ("arc_easy", include_str!("../../tasks/arc_easy.yaml")),
    ("banking77", include_str!("../../tasks/banking77.yaml")),
    ("boolq", include_str!("../../tasks/boolq.yaml")),
    ("copa", include_str!("../../tasks/copa.yaml")),
    ("gsm8k", include_str!("../../tasks/gsm8k.yaml")),
    ("lambada_openai", include_str!("../../tasks/lambada_openai.yaml")),
    ("mmlu_val", include_str!("../../tasks/mmlu_val.yaml")),
    ("openbookqa", include_str!("../../tasks/openbookqa.yaml")),
    ("piqa", include_str!("../../tasks/piqa.yaml")),
    ("winogrande", include_str!("../../tasks/winogrande.yaml")),
];

/// Names of the tasks that come with Hone.
pub fn names() -> Vec<&'static str> {
    TASKS.iter().map(|(name, _)| *name).collect()
}

/// The file of a task that comes with Hone, if `path` is its bare name.
pub(super) fn task_file(path: &Path) -> Option<&'static str> {
    TASKS.iter().find(|(name, _)| path.as_os_str() == *name).map(|(_, text)| *text)
}

/// The template that does what a function of a well-known task does. Functions are known by their
/// module, or where that is called `utils` as in many tasks, by the task.
pub(super) fn function(task: &str, name: &str) -> Option<&'static str> {
    let is_copa = task == "copa" || task.ends_with("::copa");
    Some(match name {
        "preprocess_winogrande.doc_to_text" => "{{ {'1': 0, '2': 1}[answer] }}",
        "preprocess_winogrande.doc_to_target" => "{{ sentence[sentence.index('_') + 1:].strip() }}",
        "preprocess_winogrande.doc_to_choice" => {
            "{{ [sentence[:sentence.index('_')] + option1, \
             sentence[:sentence.index('_')] + option2] }}"
        }
        "utils.doc_to_text" if is_copa => {
            "{{ premise.strip()[:-1] }} {{ {'cause': 'because', 'effect': 'therefore'}[question] }}"
        }
        "utils.doc_to_target" if is_copa => {
            "{% set choice = choice1 if label == 0 else choice2 %} {{ choice[0].lower() }}\
             {{ choice[1:] }}"
        }
        "utils.doc_to_choice" if is_copa => {
            "{{ [' ' + choice1[0].lower() + choice1[1:], ' ' + choice2[0].lower() + choice2[1:]] }}"
        }
        _ => return None,
    })
}
