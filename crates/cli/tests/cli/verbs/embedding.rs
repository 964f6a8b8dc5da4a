//! `hone embed`: files of sentence-transformers, kinds of files, and what is refused.

use super::{json, succeeds};
use crate::sandbox::tiny_model::write_model;
use crate::sandbox::{Scene, ended};
use hone_tensor::Tensor;
use hone_tensor::safetensors::{SafeTensorsFile, write};
use serde_json::Value;

/// A scene with an encoder, and texts of unequal lengths.
fn scene() -> Scene {
    let scene = Scene::new();
    write_model("bert", &scene.path("encoder"));
    scene.write("texts.txt", "w3 w4\nw9\nw5 w6 w7 w8 w20\n");
    scene
}

/// Embeddings of a file, one a line.
fn lines(scene: &Scene, name: &str) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(scene.path(name)).unwrap();
    let embedding = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let numbers = record["embedding"].as_array().unwrap().iter();
        numbers.map(|x| x.as_f64().unwrap()).collect()
    };
    text.lines().map(embedding).collect()
}

fn embed(scene: &Scene, more: &[&str]) -> Value {
    json(&mut scene.hone(&[&["embed", "encoder", "--json"], more].concat()))
}

#[test]
fn texts_become_vectors() {
    let scene = scene();
    let mut said = embed(&scene, &["texts.txt", "--out", "a.jsonl"]);
    for measured in ["seconds", "peak_bytes"] {
        assert!(said[measured].take().as_f64().unwrap() > 0.0);
    }
    let expected = serde_json::json!({
        "out": "a.jsonl", "texts": 3, "tokens": 8, "dimensions": 24, "truncated": 0,
        "pooling": "mean", "normalized": false, "seconds": null, "peak_bytes": null
    });
    assert_eq!(said, expected);
    let mean = lines(&scene, "a.jsonl");
    // Packed with others or alone, a text has the same bits.
    scene.write("one.jsonl", "{\"q\": \"w5 w6 w7 w8 w20\"}\n\n");
    embed(&scene, &["one.jsonl", "--field", "q", "-o", "b.jsonl"]);
    assert_eq!(lines(&scene, "b.jsonl")[0], mean[2]);
    // Of one token all poolings are the same; of more they are not.
    for pooling in ["cls", "last"] {
        embed(&scene, &["texts.txt", "--pooling", pooling, "-o", "c.jsonl"]);
        let found = lines(&scene, "c.jsonl");
        assert!(found[1] == mean[1] && found[2] != mean[2], "{pooling}");
    }
    // What the files of sentence-transformers say, and other kinds of files.
    let module = |kind, path| {
        let kind = format!("sentence_transformers.models.{kind}");
        serde_json::json!({"idx": 0, "name": "", "path": path, "type": kind})
    };
    let modules =
        [module("Transformer", ""), module("Pooling", "1_Pooling"), module("Normalize", "2")];
    scene.write("encoder/modules.json", &Value::from(modules.to_vec()).to_string());
    std::fs::create_dir(scene.path("encoder/1_Pooling")).unwrap();
    scene.write("encoder/1_Pooling/config.json", "{\"pooling_mode_cls_token\": true}");
    scene.write("encoder/sentence_bert_config.json", "{\"max_seq_length\": 4}");
    let said = embed(&scene, &["texts.txt", "--truncate", "-o", "d.npy"]);
    assert!(said["pooling"] == "cls" && said["normalized"] == true && said["truncated"] == 1);
    embed(&scene, &["texts.txt", "--truncate", "-o", "d.safetensors"]);
    embed(&scene, &["texts.txt", "--truncate", "-o", "d.jsonl"]);
    let read = |name| std::fs::read(scene.path(name)).unwrap();
    let (npy, safetensors) = (read("d.npy"), read("d.safetensors"));
    let header = String::from_utf8_lossy(&npy[..128]).into_owned();
    assert!(header.contains("'<f4', 'fortran_order': False, 'shape': (3, 24)"), "{header}");
    let numbers = &npy[npy.len() - 3 * 24 * 4..];
    let floats: Vec<f32> =
        numbers.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let length: f32 = floats[..24].iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5 && npy.len().is_multiple_of(16), "{length}");
    assert_eq!(&safetensors[safetensors.len() - numbers.len()..], numbers);
    let written = lines(&scene, "d.jsonl").concat();
    assert!(written.iter().zip(&floats).all(|(a, b)| (*a as f32).to_bits() == b.to_bits()));
    // A decoder embeds too.
    let said = json(&mut scene.hone(&["embed", "model", "texts.txt", "-o", "e.npy", "--json"]));
    assert_eq!(said["pooling"], "last");
    succeeds(&mut scene.hone(&["embed", "model", "texts.txt", "-o", "e.npy"]));
}

/// A classifier of a decoder, untied and without a head for tokens, embeds and does no more.
#[test]
fn classifiers_and_bare_decoders_embed() {
    let scene = scene();
    write_model("untied_bias_linear", &scene.path("whole"));
    let whole = SafeTensorsFile::open(&scene.path("whole/model.safetensors")).unwrap();
    let own = |name: &String| name != "lm_head.weight";
    let names: Vec<String> = whole.names().into_iter().filter(own).collect();
    let tensor = |name: &str| whole.tensor(name).unwrap().unwrap();
    let h = tensor("model.norm.weight").len();
    let score = Tensor::from_f32(&vec![0.5; 2 * h], &[2, h]);
    let of = |prefix: &str, to: &str| -> Vec<(String, Tensor)> {
        names.iter().map(|name| (name.replacen(prefix, to, 1), tensor(name))).collect()
    };
    let mut headed = of("model.", "model.");
    headed.push(("score.weight".to_owned(), score));
    let expected = {
        json(&mut scene.hone(&["embed", "whole", "texts.txt", "-o", "a.jsonl", "--json"]));
        lines(&scene, "a.jsonl")
    };
    for (class, tensors) in
        [("LlamaForSequenceClassification", headed), ("LlamaModel", of("model.", ""))]
    {
        std::fs::create_dir_all(scene.path(class)).unwrap();
        for name in ["config.json", "tokenizer.json"] {
            std::fs::copy(scene.path("whole").join(name), scene.path(class).join(name)).unwrap();
        }
        let config = std::fs::read(scene.path("whole/config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        config["architectures"] = serde_json::json!([class]);
        scene.write(&format!("{class}/config.json"), &config.to_string());
        let to = scene.path(&format!("{class}/model.safetensors"));
        write(&to, tensors.iter().map(|(name, tensor)| (name.clone(), tensor.into()))).unwrap();
        succeeds(&mut scene.hone(&["embed", class, "texts.txt", "-o", "b.jsonl"]));
        assert_eq!(lines(&scene, "b.jsonl"), expected, "{class}");
        succeeds(&mut scene.hone(&["export", class, "--out", &format!("{class}-out")]));
        succeeds(&mut scene.hone(&[
            "embed",
            &format!("{class}-out"),
            "texts.txt",
            "-o",
            "c.jsonl",
        ]));
        assert_eq!(lines(&scene, "c.jsonl"), expected, "{class}");
        let no_head = [class, "no head that predicts tokens (`lm_head.weight`)"];
        ended(&mut scene.hone(&["generate", class, "--prompt", "w3"])).says(2, &no_head);
        let compress = ["compress", class, "--type", "f16", "--out", "d.gguf"];
        ended(&mut scene.hone(&compress)).says(2, &no_head);
        let eval = ["eval", class, "--data", "eval.jsonl"];
        ended(&mut scene.hone(&eval)).says(2, &no_head);
        let path = format!("model.path={class}");
        ended(&mut scene.hone(&["train", "run.toml", &path])).says(2, &["model.path", no_head[1]]);
    }
}

/// What newer and older versions of sentence-transformers leave to other files, or to the reader.
#[test]
fn files_of_several_versions() {
    let scene = scene();
    let settings = |name: &str, value: Value| scene.write(name, &value.to_string());
    std::fs::create_dir(scene.path("encoder/1_Pooling")).unwrap();
    settings(
        "encoder/modules.json",
        serde_json::json!([
            {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
            {"path": "1_Pooling",
             "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
        ]),
    );
    let of = |more: &[&str]| {
        embed(&scene, &[&["texts.txt", "--truncate", "-o", "a.jsonl"], more].concat());
        lines(&scene, "a.jsonl")
    };
    // No pooling is on: it is the mean. A list of one is that one.
    for (pooling, name) in [
        (serde_json::json!({"word_embedding_dimension": 24}), "mean"),
        (serde_json::json!({"pooling_mode_cls_token": false}), "mean"),
        (serde_json::json!({"pooling_mode": ["cls"]}), "cls"),
    ] {
        settings("encoder/1_Pooling/config.json", pooling);
        assert_eq!(of(&[]), of(&["--pooling", name]));
    }
    // The longest text: of the tokenizer, and before it of a file under an older name.
    let cut = |len: &str| of(&["--max-seq-len", len]);
    let whole = cut("20");
    let tokenizer = |len: Value| {
        let path = scene.path("encoder/tokenizer_config.json");
        let text = std::fs::read(path).unwrap_or_else(|_| b"{}".to_vec());
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        config["model_max_length"] = len;
        settings("encoder/tokenizer_config.json", config);
    };
    tokenizer(serde_json::json!(1e30));
    assert_eq!(of(&[]), whole);
    tokenizer(serde_json::json!(4));
    assert!(of(&[]) == cut("4") && of(&[]) != whole);
    settings("encoder/sentence_roberta_config.json", serde_json::json!({"max_seq_length": 3}));
    assert!(of(&[]) == cut("3") && of(&[]) != cut("4"));
    let newer = serde_json::json!({"processor_kwargs": {"model_max_length": 2}});
    settings("encoder/sentence_bert_config.json", newer);
    assert!(of(&[]) == cut("2") && of(&[]) != cut("3"));
    let long = ended(&mut scene.hone(&["embed", "encoder", "texts.txt", "-o", "a.npy"]));
    long.says(2, &["sentence_bert_config.json sets model_max_length to 2"]);
    // Prompts: the usual one, and one by its name.
    std::fs::remove_file(scene.path("encoder/sentence_bert_config.json")).unwrap();
    std::fs::remove_file(scene.path("encoder/sentence_roberta_config.json")).unwrap();
    tokenizer(serde_json::json!(20));
    let prompts = serde_json::json!({"query": "w9 w8 ", "document": ""});
    let file = "encoder/config_sentence_transformers.json";
    settings(file, serde_json::json!({"prompts": prompts, "default_prompt_name": null}));
    assert_eq!(of(&[]), whole);
    let of_query = of(&["--prompt-name", "query"]);
    assert!(of_query != whole && of(&["--prompt-name", "document"]) == whole);
    settings(file, serde_json::json!({"prompts": prompts, "default_prompt_name": "query"}));
    assert!(of(&[]) == of_query && of(&["--prompt-name", "document"]) == whole);
    scene.write("texts.txt", "w9 w8 w3 w4\nw9 w8 w9\nw9 w8 w5 w6 w7 w8 w20\n");
    assert_eq!(of(&["--prompt-name", "document"]), of_query);
}

#[test]
fn what_cannot_be_embedded_is_named() {
    let scene = scene();
    let long = vec!["w3"; 21].join(" ");
    scene.write("long.txt", &format!("w3\n{long}\n"));
    scene.write("records.jsonl", "\"w3\"\n{\"query\": \"w3\"}\n");
    scene.write("empty.txt", "w3\n\n");
    scene.write("none.txt", "");
    let refused = |arguments: &[&str], parts: &[&str]| {
        let ended = ended(&mut scene.hone(&[&["embed", "encoder"], arguments].concat()));
        ended.says(2, parts);
    };
    let positions = ["long.txt:2", "21 tokens", "positions are 20", "--truncate"];
    refused(&["long.txt", "-o", "a.npy"], &positions);
    let asked = ["--max-seq-len 21", "positions are 20"];
    refused(&["long.txt", "-o", "a.npy", "--max-seq-len", "21"], &asked);
    refused(&["records.jsonl", "-o", "a.npy"], &["records.jsonl:2", "`text`", "--field"]);
    refused(&["empty.txt", "-o", "a.npy"], &["empty.txt:2", "no tokens"]);
    refused(&["none.txt", "-o", "a.npy"], &["none.txt", "has no texts"]);
    refused(&["texts.csv", "-o", "a.npy"], &["texts.csv"]);
    refused(&["texts.txt", "-o", "a.bin"], &["--out a.bin", ".safetensors"]);
    refused(&["texts.txt", "-o", "no/a.npy"], &["there is no directory no"]);
    scene.write("encoder/modules.json", "[{\"type\": \"x.Dense\", \"path\": \"2_Dense\"}]");
    let modules = ["modules.json", "`[0].type`", "`Dense`", "not supported"];
    refused(&["texts.txt", "-o", "a.npy"], &modules);
    scene.write("encoder/modules.json", "[{\"type\": \"x.Pooling\", \"path\": \"../1\"}]");
    refused(&["texts.txt", "-o", "a.npy"], &["modules.json", "`[0].path`"]);
    scene.write("encoder/modules.json", "[{\"type\": \"x.Pooling\", \"path\": \"1\"}]");
    std::fs::create_dir(scene.path("encoder/1")).unwrap();
    scene.write("encoder/1/config.json", "{\"pooling_mode\": \"max\"}");
    refused(&["texts.txt", "-o", "a.npy"], &["`pooling_mode` asks for `max`", "--pooling"]);
    let settings = "sentence_bert_config.json";
    scene.write("encoder/modules.json", "[{\"type\": \"x.Transformer\", \"path\": \"\"}]");
    scene.write(&format!("encoder/{settings}"), "{\"transformer_task\": \"fill-mask\"}");
    refused(&["texts.txt", "-o", "a.npy"], &[settings, "`transformer_task` is `fill-mask`"]);
    std::fs::remove_file(scene.path(&format!("encoder/{settings}"))).unwrap();
    let prompts = "config_sentence_transformers.json";
    scene.write(&format!("encoder/{prompts}"), "{\"prompts\": {\"query\": \"w9 \"}}");
    let asked = ["texts.txt", "-o", "a.npy", "--prompt-name", "other"];
    refused(&asked, &[prompts, "`prompts` has no prompt `other`; it has `query`"]);
    assert!(!scene.path("a.npy").exists());
    // An encoder does not answer.
    let generate = ended(&mut scene.hone(&["generate", "encoder", "--prompt", "w3"]));
    generate.says(2, &["cannot continue a text", "attention is causal"]);
}
