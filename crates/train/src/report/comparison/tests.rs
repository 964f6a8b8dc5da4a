//! The page of whole, partial and hostile figures. How it looks is checked by eye: set
//! `HONE_TEST_REPORT` to a path to have the example page written beside it.

use super::*;

fn figure(value: f64, half: f64) -> Figure {
    Figure { value, stderr: Some(half / 2.0), interval: Some([value - half, value + half]) }
}

/// Four files of a model, on two texts and two tasks.
fn example() -> Comparison {
    let model = |name: &str, bytes: f64, bits: f64| Model {
        name: name.to_owned(),
        bytes: Some(bytes),
        bits_per_weight: Some(bits),
        base: Some(0),
        ..Model::default()
    };
    let kind = |name: &str, types: &[(&str, usize)], bytes, share| Kind {
        name: name.to_owned(),
        types: types.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        bytes,
        kl_share: Some(share),
    };
    let mut models = vec![
        Model { base: None, ..model("SmolLM2-135M", 269_060_552.0, 16.0) },
        model("q8_0", 144_811_000.0, 8.61),
        model("q4_k_m", 105_454_000.0, 6.27),
        model("SmolLM2-135M-calibrated-at-5bpw", 84_100_000.0, 5.0),
        model("3.6bpw", 60_500_000.0, 3.6),
    ];
    models[3].written = Some("When it was written: 1.2e-2 nats on 4096 tokens.".to_owned());
    models[3].kinds = vec![
        kind("token_embd", &[("q6_k", 1)], 23_224_320.0, 0.182),
        kind("attn_q", &[("q5_0", 20), ("q4_0", 10)], 6_700_000.0, 0.12),
        kind("ffn_down", &[("q5_1", 12), ("q4_k", 18)], 18_000_000.0, 0.41),
    ];
    let lost = |model, kl: f64, same_top: f64| Measured {
        model,
        base: Some(0),
        kl: figure(kl, 0.06 * kl),
        quantiles: Some([9.0 * kl, 40.0 * kl]),
        same_top: figure(same_top, 0.004),
        flips: Some((1234, 1180, 0.281)),
    };
    let rows = |scale: f64| {
        vec![
            lost(1, 0.0011 * scale, 0.985),
            lost(2, 0.0135 * scale, 0.948),
            lost(3, 0.0121 * scale, 0.951),
            lost(4, 0.094 * scale, 0.874),
        ]
    };
    let text =
        |name: &str, scale| Text { name: name.to_owned(), rows: rows(scale), ..Text::default() };
    let scored =
        |model, value: f64, difference| Scored { model, value: figure(value, 0.01), difference };
    let task = |name: &str, higher_is_better, change: f64| Task {
        name: name.to_owned(),
        metric: "acc".to_owned(),
        higher_is_better,
        num_items: 2376,
        rows: vec![
            scored(0, 0.6123, None),
            scored(2, 0.6123 + 0.1 * change, Some(figure(0.1 * change, 0.01))),
            scored(4, 0.6123 + change, Some(figure(change, 0.012))),
        ],
    };
    Comparison {
        models,
        texts: vec![
            text("stories.jsonl, 20,480 tokens", 1.0),
            text("news.jsonl, 9,000 tokens", 2.2),
        ],
        tasks: vec![task("arc_easy", true, -0.041), task("lambada_openai", false, -0.03)],
        notes: Vec::new(),
    }
}

#[test]
fn sizes_losses_and_tasks_are_shown() {
    let page = build(&example());
    if let Ok(path) = std::env::var("HONE_TEST_REPORT") {
        std::fs::write(format!("{path}.models.html"), &page).unwrap();
    }
    for part in [
        "<title>What was kept of SmolLM2-135M – Hone</title>",
        "<p class=\"facts\">5 models · 2 texts · 2 tasks</p>",
        "<h2>On stories.jsonl, 20,480 tokens</h2>",
        "<td>SmolLM2-135M <span class=\"tag\">base</span></td><td>269.1 MB</td><td>16.00</td>\
         <td>–</td><td>–</td>",
        "<td>q4_k_m</td><td>105.5 MB</td><td>6.27</td><td>2.55 ×</td>\
         <td>0.0135 <small>± 0.00040</small></td><td>0.121</td><td>0.540</td><td>94.80 %</td>\
         <td>1,234 · 1,180 <small>p = 0.281</small></td>",
        "<h3>arc_easy: acc ↑</h3><span class=\"legend\">2376 items</span>",
        "<td>0.5713 <small>± 0.0050</small></td><td><span class=\"warn\">-0.0410</span> \
         <small>-0.0530 to -0.0290</small></td>",
        // Where less is better, less is good; what may be chance is neither.
        "<span class=\"good\">-0.0300</span>",
        "<span class=\"\">-0.0041</span>",
        "<td>attn_q</td><td><span class=\"types\">20\u{a0}×\u{a0}q5_0, 10\u{a0}×\u{a0}q4_0</span>",
        "<td>41.00 %</td>",
        "<p class=\"note\">When it was written: 1.2e-2 nats on 4096 tokens.</p>",
        ">SmolLM2-…ibrated-at-5bpw</text>",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // Four points in each of two pictures of two texts.
    assert_eq!(page.matches("<circle ").count(), 16);
    assert!(!page.contains("{{") && !page.contains("NaN") && !page.contains("<h2>Size"));
    for part in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(part), "{part}");
    }
}

/// A file that loses nothing has no place on a logarithmic axis; what is not known is a dash.
#[test]
fn what_is_missing_is_left_out() {
    let mut comparison = example();
    comparison.texts.truncate(1);
    comparison.texts[0].rows.truncate(3);
    comparison.texts[0].rows[0].kl = Figure::default();
    comparison.texts[0].rows[1].flips = None;
    comparison.models[2].bytes = None;
    let page = build(&comparison);
    assert!(page.contains("Without q8_0, which diverges nowhere."), "{page}");
    assert!(page.contains("<td>q4_k_m</td><td>–</td><td>6.27</td><td>–</td>"), "{page}");
    // The third file is in both pictures, the first in one, and the second in none.
    assert_eq!(page.matches("<circle ").count(), 3);
    assert!(page.contains("<h2>Others</h2>") && page.contains("<td>3.6bpw</td><td>60.5 MB</td>"));
    comparison.texts.clear();
    assert!(build(&comparison).contains("<h2>Size</h2>"));
    assert!(build(&Comparison::default()).contains("<h1>Models compared</h1>"));
}

/// Divergences from two bases are in two tables, each with what it is smaller than.
#[test]
fn bases_have_tables_of_their_own() {
    let mut comparison = example();
    comparison.texts.truncate(1);
    let rows = &mut comparison.texts[0].rows;
    rows.truncate(2);
    let kl = figure(0.25, 0.01);
    let same_top = figure(0.75, 0.01);
    rows.push(Measured { model: 2, base: Some(1), kl, quantiles: None, same_top, flips: None });
    let page = build(&comparison);
    let second = "<h2>On stories.jsonl, 20,480 tokens, against q8_0</h2>";
    let at = page.find(second).unwrap();
    let (first, second) = page.split_at(at);
    assert!(first.contains("<h2>On stories.jsonl, 20,480 tokens, against SmolLM2-135M</h2>"));
    for (section, parts) in [
        (first, ["<td>q8_0</td><td>144.8 MB</td>", "<td>2.55 ×</td><td>0.0135 <small>"]),
        (
            second,
            ["<td>q8_0 <span class=\"tag\">base</span></td>", "<td>1.37 ×</td><td>0.250 <small>"],
        ),
    ] {
        assert!(parts.iter().all(|part| section.contains(part)), "{section}");
    }
    assert!(!second[..second.find("<h2>Others").unwrap()].contains("0.0135"), "{second}");
    assert!(page.contains("<h1>Models compared</h1>"), "{page}");
}

#[test]
fn hostile_names_stay_text() {
    let attack = "</td><script>alert(1)</script>\"'{{title}}";
    let mut comparison = example();
    comparison.models.iter_mut().for_each(|model| model.name = attack.to_owned());
    comparison.models[3].kinds[0].name = attack.to_owned();
    comparison.models[3].kinds[0].types[0].0 = attack.to_owned();
    comparison.models[3].written = Some(attack.to_owned());
    comparison.texts[0].name = attack.to_owned();
    comparison.tasks[0].name = attack.to_owned();
    comparison.tasks[0].metric = attack.to_owned();
    comparison.notes.push(attack.to_owned());
    let page = build(&comparison);
    assert!(!page.contains("<script") && !page.contains("'{{"), "{page}");
    assert!(page.contains("&lt;script&gt;"));
}

/// Losses are shown without a divergence too, and need no base.
#[test]
fn losses_are_shown_by_themselves() {
    let model =
        |name: &str, bytes| Model { name: name.to_owned(), bytes: Some(bytes), ..Model::default() };
    let page = build(&Comparison {
        models: vec![model("base + adapter", 2e6), model("merged", 1e6), model("other", 5e5)],
        texts: vec![Text {
            name: "rows".to_owned(),
            losses: vec![(1, 1.25), (0, 1.0)],
            ..Text::default()
        }],
        ..Comparison::default()
    });
    assert!(page.contains("<th>smaller</th><th>loss</th></tr>"), "{page}");
    let rows = [
        "<td>base + adapter</td><td>2.0 MB</td><td>–</td><td>–</td><td>1.0000</td>",
        "<td>merged</td><td>1.0 MB</td><td>–</td><td>–</td><td>1.2500</td>",
    ];
    assert!(rows.iter().all(|row| page.contains(row)), "{page}");
    assert!(page.contains("<h2>Others</h2>") && !page.contains("<svg"), "{page}");
}
