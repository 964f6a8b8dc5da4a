//! Tokenizers: ids, special tokens, and decoding token by token.

use crate::fixture::{BOS, EOS, Fixture, IM_END};
use hone_data::{RecordSpec, Tokenizer};
use serde_json::json;

#[test]
fn special_tokens_and_sizes() {
    let fixture = Fixture::plain();
    let tok = &fixture.tokenizer;
    assert_eq!((tok.bos_token_id(), tok.eos_token_id()), (Some(BOS), Some(EOS)));
    assert_eq!(tok.vocab_size(), 260);
    // The file's own truncation to eight tokens must not apply.
    assert_eq!(tok.encode("abcdefghij", true).unwrap().len(), 11);
    assert_eq!(tok.encode("a", false).unwrap(), [97]);
    assert_eq!(tok.decode(&[BOS, 97, EOS], true).unwrap(), "a");
    fixture.write("generation_config.json", json!({"eos_token_id": [IM_END, 7]}).to_string());
    let tok = Tokenizer::from_dir(fixture.path()).unwrap();
    assert_eq!(tok.stop_token_ids(), [7, EOS, IM_END]);
    fixture.write("tokenizer_config.json", "{}");
    let tok = Tokenizer::from_dir(fixture.path()).unwrap();
    assert_eq!((tok.bos_token_id(), tok.eos_token_id()), (None, Some(IM_END)));
}

/// Ids need not be dense, and a Unigram model lists its tokens.
#[test]
fn the_vocabularys_size_is_its_highest_id_plus_one() {
    let size = |model: serde_json::Value| {
        let dir = tempfile::tempdir().unwrap();
        let added = json!([{"id": 0, "content": "a", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}]);
        let json = json!({"version": "1.0", "added_tokens": added, "model": model});
        std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        Tokenizer::from_dir(dir.path()).unwrap().vocab_size()
    };
    let sparse = json!({"type": "WordLevel", "vocab": {"a": 0, "b": 70, "c": 7}, "unk_token": "a"});
    assert_eq!(size(sparse), 71);
    let listed = json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.0]]});
    assert_eq!(size(listed), 2);
}

#[test]
fn the_configuration_says_what_is_added() {
    let encode = |config: serde_json::Value| {
        let fixture = Fixture::new(config);
        fixture.tokenizer.encode("a", true).unwrap()
    };
    let tokens = |more: serde_json::Value| {
        let mut config = json!({"bos_token": "<s>", "eos_token": "</s>"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    assert_eq!(encode(tokens(json!({}))), [BOS, 97]);
    assert_eq!(encode(tokens(json!({"add_bos_token": false}))), [97]);
    assert_eq!(encode(tokens(json!({"add_bos_token": true}))), [BOS, 97]);
    let both = tokens(json!({"add_bos_token": true, "add_eos_token": true}));
    assert_eq!(encode(both.clone()), [BOS, 97, EOS]);
    // An end-of-text token that the tokenizer adds is not doubled, and is a target.
    let fixture = Fixture::new(both);
    let record = r#"{"prompt": "a", "completion": "b"}"#;
    let set = fixture.load("a.jsonl", record, &RecordSpec::default()).unwrap();
    assert_eq!(fixture.row_text(&set, 0), "<s>ab</s>");
    assert_eq!(fixture.target_text(&set, 0), "b</s>");
}

#[test]
fn spaces_keep_their_offsets() {
    let fixture = Fixture::plain();
    let encoded = fixture.tokenizer.encode_with_offsets("a  é", true).unwrap();
    assert_eq!(encoded.offsets[1..], [(0, 1), (1, 2), (2, 3), (3, 5), (3, 5)]);
    assert_eq!(encoded.is_added, [true, false, false, false, false, false]);
}

#[test]
fn characters_come_out_whole() {
    let fixture = Fixture::plain();
    let text = "né 日本 👩‍👩‍👧";
    let ids = fixture.tokenizer.encode(text, false).unwrap();
    let mut stream = fixture.tokenizer.decode_stream(&[], true);
    let pieces = ids.iter().map(|id| stream.push(*id).unwrap()).collect::<Vec<_>>();
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    assert_eq!(pieces.concat(), text);
    assert_eq!(stream.finish().unwrap(), "");
    let mut stream = fixture.tokenizer.decode_stream(&[], true);
    assert_eq!(stream.push(0xe6).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

/// A decoder that drops the first space: only the text's start may lose it.
#[test]
fn streams_equal_whole_decoding() {
    let Some(shared) = crate::shared() else { return };
    let tok = Tokenizer::from_dir(&shared.join("models/stories260k")).unwrap();
    assert_eq!((tok.vocab_size(), tok.bos_token_id(), tok.eos_token_id()), (512, Some(1), Some(2)));
    let text = "Once upon a time, Zoë said: 日本 \n  ok.  Then";
    let ids = tok.encode(text, true).unwrap();
    assert_eq!(ids[0], 1);
    for skip in [true, false] {
        let whole = tok.decode(&ids, skip).unwrap();
        let mut stream = tok.decode_stream(&[], skip);
        let mut streamed =
            ids.iter().map(|id| stream.push(*id).unwrap()).collect::<Vec<_>>().concat();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, whole);
        let (before, after) = ids.split_at(ids.len() / 2);
        let mut stream = tok.decode_stream(before, skip);
        let streamed = after.iter().map(|id| stream.push(*id).unwrap()).collect::<Vec<_>>();
        assert_eq!(tok.decode(before, skip).unwrap() + &streamed.concat(), whole);
    }
}
