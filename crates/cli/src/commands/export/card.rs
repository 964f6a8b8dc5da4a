//! The model card of what is written: `README.md` of a directory, or a file of the same name beside
//! a GGUF file, to be uploaded as the README of a repository. What it says is also in the metadata
//! of a GGUF file as far as the format has keys.

use super::super::Opened;
use crate::args::ModelArgs;
use crate::failure::Failure;
use hone_model::adapter::TrainedOn;
use hone_model::hub::name_of;
use hone_model::{Fidelity, is_gguf};
use hone_tensor::gguf::{GgufFile, Meta, Value};
use hone_train::TrainError;
use hone_train::checkpoint::{sha256_of_file, write_file_whole};
use hone_train::run_dir::{Manifest, RunDir};
use std::path::{Path, PathBuf};

/// How what is written came of the model that it is called after.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Relation {
    /// Trained further, or merged with an adapter that was.
    Finetuned,
    /// The same in fewer bits, or in another layout.
    Quantized,
    /// An adapter for it.
    Adapter,
    /// The same model in the same layout.
    Copied,
}

/// What is known of a model that is to be written.
pub(in super::super) struct Card {
    /// What is written is called.
    name: String,
    /// As the command line names model and adapter.
    model: String,
    adapter: Option<PathBuf>,
    relation: Relation,
    /// Hub name of the base.
    base: Option<String>,
    license: Option<String>,
    /// Whether it predicts tokens.
    generates: bool,
    /// The run that trained it: its run file's digest and its manifest.
    run: Option<(String, Manifest)>,
    /// What the adapter says that it was trained on.
    trained_on: Option<TrainedOn>,
}

/// Where the card of a file or directory is.
pub(in super::super) fn place(out: &Path) -> PathBuf {
    if is_gguf(out) { out.with_extension("md") } else { out.join("README.md") }
}

/// Refuses to write where the card's place is taken.
pub(in super::super) fn check_place(out: &Path) -> Result<(), Failure> {
    let place = place(out);
    match place.exists() {
        true => Err(Failure::Usage(format!(
            "--out {}: its model card would be {}, which already exists; choose another name",
            out.display(),
            place.display()
        ))),
        false => Ok(()),
    }
}

impl Card {
    /// What the model's files, and the run that it or its adapter came from, say.
    pub(in super::super) fn of(
        args: &ModelArgs,
        opened: &Opened,
        (out, is_adapter): (&Path, bool),
    ) -> Self {
        let (model, dir) = (&args.model, &opened.dir);
        // A run's results are in its directory.
        let result = args.adapter.as_deref().unwrap_or(dir);
        let run = result.parent().map(RunDir::new).filter(RunDir::holds_run);
        // One of another version of Hone says nothing.
        let run = run.and_then(|run| {
            let digest = sha256_of_file(&run.join("run.toml")).ok()?;
            Some((digest, run.read_manifest().ok()?))
        });
        let said = Said::of(dir);
        // What was trained, if the hub has it: a path names nothing elsewhere.
        let trained = run.as_ref().and_then(|(_, manifest)| {
            let file = manifest.inputs.model.first()?;
            name_of(&manifest.model.path, &file.path)
        });
        let base = name_of(model, dir).or(trained).map(str::to_owned).or(said.base);
        let is_trained = run.is_some() || args.adapter.is_some();
        let relation = match (is_adapter, is_trained) {
            (true, _) => Relation::Adapter,
            (false, true) => Relation::Finetuned,
            (false, false) if is_gguf(out) => Relation::Quantized,
            (false, false) => Relation::Copied,
        };
        let (model, adapter) = (model.clone(), args.adapter.clone());
        let name = if is_gguf(out) { out.file_stem() } else { out.file_name() };
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let config = &opened.model.decoder.config;
        let generates = config.encoder.is_none() && !config.lacks_lm_head;
        let license = said.license;
        let trained_on = adapter.as_deref().and_then(|dir| TrainedOn::read(dir).ok().flatten());
        Self { name, model, adapter, relation, base, license, generates, run, trained_on }
    }

    /// Of what holds the model's matrices in fewer bits, in a directory.
    pub(in super::super) fn quantised(mut self) -> Self {
        if self.relation == Relation::Copied {
            self.relation = Relation::Quantized;
        }
        self
    }

    /// What is written is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The model that its adapter was trained on, if that is known.
    pub(super) fn trained_on(&self) -> Option<&TrainedOn> {
        self.trained_on.as_ref()
    }

    /// The model that it came of, by its hub name if that is known.
    pub(super) fn base(&self) -> &str {
        self.base.as_deref().unwrap_or(&self.model)
    }

    /// The keys of a GGUF file.
    pub(in super::super) fn metadata(&self) -> Vec<(String, Meta)> {
        let mut keys = Vec::new();
        let mut set = |key: &str, value: Meta| keys.push((format!("general.{key}"), value));
        if let Some(base) = &self.base {
            let (organization, name) = base.split_once('/').unwrap_or(("", base));
            set("base_model.count", Meta::U32(1));
            set("base_model.0.name", name.into());
            set("base_model.0.organization", organization.into());
            set("base_model.0.repo_url", Meta::Text(format!("{HUB}{base}")));
        }
        if let Some(license) = &self.license {
            set("license", license.as_str().into());
        }
        let tags = [Some(TAG), Some(GENERATION).filter(|_| self.generates)];
        set("tags", Meta::Texts(tags.into_iter().flatten().map(str::to_owned).collect()));
        keys
    }

    /// Writes the card of `out`; `figures` are what a comparison of it with the model in memory
    /// gave.
    ///
    /// # Errors
    /// If the system refuses.
    pub(in super::super) fn write(
        &self,
        out: &Path,
        figures: &[(&str, String)],
    ) -> Result<(), Failure> {
        let text = self.text(is_gguf(out), figures);
        Ok(write_file_whole(&place(out), text.as_bytes()).map_err(TrainError::from)?)
    }

    /// What the Hub reads of a card.
    fn front_matter(&self, is_gguf: bool) -> String {
        let library = match (is_gguf, self.relation) {
            (true, _) => "gguf",
            (false, Relation::Adapter) => "peft",
            (false, _) => "transformers",
        };
        let relation = match self.relation {
            Relation::Finetuned => Some("finetune"),
            Relation::Quantized => Some("quantized"),
            Relation::Adapter => Some("adapter"),
            Relation::Copied => None,
        };
        let base = self.base.as_deref();
        let lines = [
            ("base_model", base),
            ("base_model_relation", relation.filter(|_| base.is_some())),
            ("license", self.license.as_deref()),
            ("library_name", Some(library)),
            ("pipeline_tag", Some(GENERATION).filter(|_| self.generates)),
        ];
        let line = |(key, value): (&str, Option<&str>)| Some(format!("{key}: {}\n", value?));
        let lines: String = lines.into_iter().filter_map(line).collect();
        format!("---\n{lines}tags:\n- {TAG}\n---\n")
    }

    fn text(&self, is_gguf: bool, figures: &[(&str, String)]) -> String {
        let of = match (&self.adapter, self.relation) {
            (Some(adapter), Relation::Adapter) => {
                format!("The adapter `{}` for `{}`", adapter.display(), self.model)
            }
            (Some(adapter), _) => {
                format!("`{}` with the adapter `{}` merged into it", self.model, adapter.display())
            }
            (None, _) => format!("`{}`", self.model),
        };
        let license = self.license.as_deref().unwrap_or("not stated by the model's files");
        let mut rows = vec![("Base", self.base().to_owned()), ("Licence", license.to_owned())];
        if let (Some(of), Relation::Adapter) = (&self.trained_on, self.relation) {
            rows.push(("Base's weights", format!("SHA-256 `{}`", of.weights_sha256)));
            rows.extend(of.files.iter().filter_map(|line| {
                let (digest, name) = line.split_once("  ")?;
                Some(("Base's files", format!("{name}, SHA-256 `{digest}`")))
            }));
        }
        if let Some((digest, manifest)) = &self.run {
            let inputs = &manifest.inputs;
            for (kind, files) in [("Trained on", &inputs.train), ("Evaluated on", &inputs.eval)] {
                rows.extend(files.iter().map(|file| {
                    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
                    (kind, format!("{name}, SHA-256 `{}`", file.sha256))
                }));
            }
            rows.push(("Run file", format!("run.toml, SHA-256 `{digest}`")));
        }
        let (front, name, rows) = (self.front_matter(is_gguf), &self.name, table(&rows));
        let version = env!("CARGO_PKG_VERSION");
        let figures = table(figures);
        format!(
            "{front}\n# {name}\n\n{of}{BY_HONE}{version}.\n\n{rows}\nCompared with the \
             model in memory when it was read back:\n\n{figures}"
        )
    }
}

/// What is compared on where there is no other text.
pub(in super::super) const FOUR_TEXTS: &str = "four short texts";

/// Where the Hub's names are to be found.
const HUB: &str = "https://huggingface.co/";

/// In every card that Hone writes.
const BY_HONE: &str = ", written by Hone ";

/// What models of Hone's are tagged with, and what those that predict tokens are for.
const TAG: &str = "hone";
const GENERATION: &str = "text-generation";

fn table(rows: &[(&str, String)]) -> String {
    let row = |(what, value): &(&str, String)| format!("| {what} | {value} |\n");
    format!("| | |\n| --- | --- |\n{}", rows.iter().map(row).collect::<String>())
}

/// The figures of a comparison.
pub(in super::super) fn figures(fidelity: &Fidelity) -> Vec<(&'static str, String)> {
    let mut figures = vec![
        ("text", FOUR_TEXTS.to_owned()),
        ("KL divergence, nats per token", format!("{:.3e}", fidelity.kl)),
        ("most likely token the same", format!("{:.1} %", 100.0 * fidelity.top1_agreement)),
        ("largest error of a logit, of their range", format!("{:.1e}", fidelity.max_error)),
    ];
    if let Some(lost) = fidelity.lost {
        figures.push(("lost of what training changed", format!("{:.1} %", 100.0 * lost)));
    }
    figures
}

/// What a model's own files say of where it comes from.
#[derive(Default)]
struct Said {
    /// Only as Hone wrote it: other cards name the base of this very model, not the model.
    base: Option<String>,
    license: Option<String>,
}

impl Said {
    /// The front matter of a directory's README, or the metadata of a GGUF file.
    fn of(model: &Path) -> Self {
        if !is_gguf(model) {
            let text = std::fs::read_to_string(model.join("README.md")).unwrap_or_default();
            return Self::of_readme(&text);
        }
        let Ok(file) = GgufFile::open(model) else { return Self::default() };
        let text = |key: &str| match file.get(&format!("general.{key}")) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        };
        let base = text("base_model.0.repo_url").and_then(|url| plain(url.strip_prefix(HUB)?));
        let is_ours = match file.get("general.tags") {
            Some(Value::Array(tags)) => tags.iter().any(|tag| tag == Ok(Value::Text(TAG))),
            _ => false,
        };
        Self { base: base.filter(|_| is_ours), license: text("license").and_then(plain) }
    }

    /// Lines `key: value` before the second `---`; lists and nested values are left out.
    fn of_readme(text: &str) -> Self {
        let front = text.strip_prefix("---\n").and_then(|rest| Some(rest.split_once("\n---")?.0));
        let value = |key: &str| {
            let mut lines = front?.lines();
            let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            plain(value.trim().trim_matches(['"', '\'']))
        };
        let base = value("base_model").filter(|_| text.contains(BY_HONE));
        Self { base, license: value("license") }
    }
}

/// A value that is one word, as names and licences are.
fn plain(value: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (!value.is_empty() && value.len() < 128 && value.chars().all(is_plain))
        .then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{BY_HONE, Said};

    #[test]
    fn front_matter() {
        let of = |text: &str| {
            let Said { base, license } = Said::of_readme(text);
            (base.unwrap_or_default(), license.unwrap_or_default())
        };
        let both = "---\nlicense: apache-2.0\nbase_model: \"org/name\"\ntags:\n- x\n---\n# A\n";
        assert_eq!(of(both), (String::new(), "apache-2.0".to_owned()));
        let ours = format!("{both}`a`{BY_HONE}1.\n");
        assert_eq!(of(&ours), ("org/name".to_owned(), "apache-2.0".to_owned()));
        for nothing in ["", "# A\nlicense: mit\n", "---\nlicense: mit", "---\nlicense:\n- a\n---\n"]
        {
            assert_eq!(of(nothing), Default::default(), "{nothing}");
        }
        assert_eq!(of("---\nlicense: a | b\n---\n").1, "");
    }
}
