//! Heads of the blocks without a window, which differ from those of the others: as published files
//! say it, or as transformers saves it, block by block.

use crate::families;
use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::Heads;

/// Heads of blocks without a window.
pub(super) fn heads(
    raw: &RawConfig,
    keys_as_values: bool,
    is_sliding: &[bool],
) -> Result<Heads, ConfigError> {
    const DIM: &str = "global_head_dim";
    const KEYS: &str = "num_global_key_value_heads";
    let mut head_dim = raw.optional_size(DIM)?;
    let mut keys = raw.optional_size(KEYS)?.filter(|_| keys_as_values);
    if let Some(blocks) = raw.object("per_layer_config")? {
        let [own_dim, own_keys] = of_full_blocks(&blocks, is_sliding)?;
        for (key, global, own) in [(DIM, head_dim, own_dim), (KEYS, keys, own_keys)] {
            if let (Some(global), true) = (global, global != own) {
                let own = own.map_or("nothing".to_owned(), |own| own.to_string());
                let problem = format!(
                    "is {global}, but per_layer_config says {own} of blocks without a window: \
                     remove the one that does not fit the weights"
                );
                return Err(raw.error(key, problem));
            }
        }
        // Where it says nothing, a block has what all have.
        let of_all = raw.optional_size("head_dim")?.unwrap_or(256);
        (head_dim, keys) = (Some(own_dim.unwrap_or(of_all)), own_keys);
    }
    let head_dim = head_dim.unwrap_or(512);
    let mut full = families::heads(raw, (DIM, head_dim), Some([8, 4]))?;
    full.num_kv_heads = keys.unwrap_or(full.num_kv_heads);
    if !full.num_heads.is_multiple_of(full.num_kv_heads) {
        let (heads, found) = (full.num_heads, full.num_kv_heads);
        let problem = format!("must divide num_attention_heads ({heads}), found {found}");
        return Err(raw.ruled_out(KEYS, problem));
    }
    Ok(full)
}

/// Dimensions of a head and number of key heads that transformers wrote down for each block without
/// a window, which must be the same for all of them, and for no other.
fn of_full_blocks(
    blocks: &RawConfig,
    is_sliding: &[bool],
) -> Result<[Option<usize>; 2], ConfigError> {
    let mut found: Option<(usize, [Option<usize>; 2])> = None;
    for (block, &is_sliding) in is_sliding.iter().enumerate() {
        let key = block.to_string();
        let own = match blocks.object(&key)? {
            None => [None, None],
            Some(own) => {
                let sizes =
                    [own.optional_size("head_dim")?, own.optional_size("num_key_value_heads")?];
                own.refuse_unread(&[])?;
                sizes
            }
        };
        let (of, expected) = match is_sliding {
            true => ("all blocks with a window", [None, None]),
            false => ("all blocks without a window", found.get_or_insert((block, own)).1),
        };
        if own != expected {
            let problem = format!(
                "is not what the others have, and only sizes that are the same for {of} are \
                 supported: use a configuration of a published model, such as google/gemma-4-31B"
            );
            return Err(blocks.error(&key, problem));
        }
    }
    blocks.refuse_unread(&[])?;
    Ok(found.map_or([None, None], |(_, own)| own))
}
