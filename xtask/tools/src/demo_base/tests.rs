use super::corpus::corpus;
use super::write_recipe;
use std::collections::HashSet;

#[test]
fn a_seed_gives_the_same_documents_again_and_another_seed_others() {
    let documents = |seed| corpus(seed, 50).collect::<Vec<_>>();
    assert_eq!(documents(3), documents(3));
    assert_ne!(documents(3), documents(4));
    // A document does not depend on how many are asked for.
    assert_eq!(corpus(3, 10).collect::<Vec<_>>(), documents(3)[..10]);
}

#[test]
fn the_corpus_varies_and_gives_nothing_of_the_task_away() {
    let documents = corpus(1, 2000).collect::<Vec<_>>();
    let num_distinct = documents.iter().collect::<HashSet<_>>().len();
    assert!(num_distinct > 1900, "short lists may come twice, not more: {num_distinct}");
    for text in &documents {
        for secret in ["YAML:", "buyer:", "item:", "color:", "count:", "place:", "for:"] {
            assert!(!text.contains(secret), "{secret} is in {text:?}");
        }
        let is_record = text.starts_with("Record: { ") && text.ends_with(" }");
        assert_eq!(is_record, text.contains(['{', '}']), "a mark was left: {text:?}");
    }
}

/// The tokenizer in the binary is the recipe's, and the weights fit the recipe's configuration.
#[test]
fn the_recipe_is_that_of_the_model_in_the_binary() {
    let dir = std::env::temp_dir().join(format!("hone-demo-base-{}", std::process::id()));
    write_recipe(&dir, 5_000).unwrap();
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/cli/demo");
    let tokenizer = |dir: &std::path::Path| std::fs::read(dir.join("tokenizer.json")).unwrap();
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let (made, shipped) = (tokenizer(&dir.join("start")), tokenizer(&demo));
    assert!(json(&made) == json(&shipped), "another tokenizer than the one in the binary");
    let device = hone_tensor::Device::dry();
    let load = |dir: &std::path::Path| {
        hone_model::load(dir, &device, hone_model::LoadOptions::INFERENCE).unwrap()
    };
    load(&dir.join("start"));
    load(&demo);
    hone_train::run_file::RunFile::load(&dir.join("run.toml"), &[]).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}
