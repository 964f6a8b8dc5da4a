//! The demo's task: a sentence about a purchase to a YAML record.
//!
//! No held-out item shares a person with the training rows, nor a triple of count, colour and
//! item.

use super::scene::{Scene, pick};
use super::words::{COLOURS, HELD_OUT_PEOPLE, ITEMS, PEOPLE};
use hone_data::random::Stream;

/// Rows to train on.
pub const NUM_TRAIN: usize = 1500;
/// Rows to measure with.
pub const NUM_HELD_OUT: usize = 100;

const DOMAIN: u16 = 0x0c0b;

/// A row of the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The sentence and the instruction.
    pub prompt: String,
    /// A space and the record.
    pub completion: String,
}

/// Training rows and held-out rows, each without repetition.
pub fn task(seed: u64) -> (Vec<Item>, Vec<Item>) {
    let mut random = Stream::new(seed, 0, DOMAIN);
    let train = draw(&mut random, NUM_TRAIN, PEOPLE, false);
    (train, draw(&mut random, NUM_HELD_OUT, HELD_OUT_PEOPLE, true))
}

fn draw(random: &mut Stream, num_items: usize, people: &[&'static str], held: bool) -> Vec<Item> {
    let mut items = Vec::<Item>::with_capacity(num_items);
    while items.len() < num_items {
        let scene = Scene::draw(random, |random| pick(random, people).to_owned());
        if is_held_out(&scene) != held {
            continue;
        }
        let item = item(&scene, random);
        if !items.contains(&item) {
            items.push(item);
        }
    }
    items
}

/// Every fifth triple of count, colour and item is held out from training.
fn is_held_out(scene: &Scene) -> bool {
    (scene.count + scene.colour + scene.item).is_multiple_of(5)
}

fn item(scene: &Scene, random: &mut Stream) -> Item {
    let has_recipient = random.below(4) > 0;
    let orders = if has_recipient { ORDERS } else { ORDERS_FOR_NOBODY };
    let order = pick(random, orders);
    let text = match random.below(4) {
        0 => format!("{} {order}", pick(random, ASIDES)),
        1 => format!("{order} {}", pick(random, ASIDES)),
        _ => order.to_owned(),
    };
    let recipient = if has_recipient { scene.recipient.as_str() } else { "null" };
    let record = format!(
        " {{ buyer: {}, item: {}, color: {}, count: {}, place: {}, for: {recipient} }}",
        scene.actor,
        ITEMS[scene.item],
        COLOURS[scene.colour],
        scene.number(),
        scene.place,
    );
    Item { prompt: scene.tell(&format!("Note: {text} YAML:")), completion: record }
}

/// Sentences of the task with a recipient.
const ORDERS: &[&str] = &[
    "{a} bought {n} {c} {i} at the {p} for {b}.",
    "At the {p}, {a} bought {n} {c} {i} for {b}.",
    "{a} went to the {p} and got {b} {n} {c} {i}.",
    "For {b}, {a} picked up {n} {c} {i} at the {p}.",
    "{b} wanted {c} {i}, so {a} bought {n} of them at the {p}.",
    "{N} {c} {i} from the {p}, please: {a} pays, they are for {b}.",
    "On {y}, {a} stopped at the {p} to buy {n} {i} in {c} for {b}.",
    "{b} will be glad: {a} found {n} {c} {i} at the {p}.",
];

/// Sentences of the task without a recipient.
const ORDERS_FOR_NOBODY: &[&str] = &[
    "{a} bought {n} {c} {i} at the {p}.",
    "At the {p}, {a} picked up {n} {c} {i}.",
    "On {y}, {a} went to the {p} and got {n} {i} in {c}.",
];

/// Sentences that may precede or follow an order and are not part of the record.
const ASIDES: &[&str] =
    &["It was raining.", "The shop was full.", "That was on {y}.", "It took an hour."];
