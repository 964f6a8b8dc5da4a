//! Known answers of the generator, and what the shuffle promises.

use super::*;

/// The known answers distributed with the authors' Random123 library.
#[test]
fn philox_known_answers() {
    assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert_eq!(
        philox4x32([u32::MAX; 4], [u32::MAX; 2]),
        [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
    );
    assert_eq!(
        philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
        [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
    );
}

#[test]
fn streams_differ_and_repeat() {
    let draw = |seed, epoch, domain| {
        let mut s = Stream::new(seed, epoch, domain);
        (0..4).map(|_| s.next_u64()).collect::<Vec<_>>()
    };
    assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
    assert_ne!(draw(1, 2, 3), draw(2, 2, 3));
    assert_ne!(draw(1, 2, 3), draw(1, 3, 3));
    assert_ne!(draw(1, 2, 3), draw(1, 2, 4));
}

#[test]
fn shuffle_is_a_permutation_and_nearly_uniform() {
    let mut counts = [[0usize; 4]; 4];
    for seed in 0..4000 {
        let mut items = [0, 1, 2, 3];
        Stream::new(seed, 0, 0).shuffle(&mut items);
        for (place, item) in items.iter().enumerate() {
            counts[place][*item] += 1;
        }
    }
    for count in counts.iter().flatten() {
        assert!((850..1150).contains(count), "{counts:?}");
    }
}
