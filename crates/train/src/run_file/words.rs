//! How a user of run files is told to use the settings that errors in data name.

use hone_data::Setting;

/// What to do to the run file.
pub fn words(setting: Setting) -> Option<String> {
    Some(match setting {
        Setting::Paths => "check data.train and data.eval".to_owned(),
        Setting::Format => "name the right data.format".to_owned(),
        Setting::FormatAs(format) => format!("set data.format = \"{}\"", format.name()),
        Setting::Fields => "name data.prompt_field and data.completion_field".to_owned(),
        Setting::MaxSeqLen => "raise data.max_seq_len".to_owned(),
        Setting::Truncate => "set data.overlong = \"truncate\"".to_owned(),
        Setting::Skip => "set data.on_error = \"skip\"".to_owned(),
        Setting::NoEos => "set data.append_eos = false".to_owned(),
        Setting::Objective(kind) => format!("set objective.kind = \"{kind}\""),
        Setting::NumEpochs(most) => format!("set train.num_epochs to at most {most}"),
        Setting::MaxSteps => "give train.max_steps".to_owned(),
    })
}
