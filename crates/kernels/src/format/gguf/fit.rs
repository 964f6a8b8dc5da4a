//! Scales and integers with which a block comes closest to weights that matter unequally: the least
//! sum of `importance · (weight − unpacked)²`, as far as a search finds it.
//!
//! A group of weights shares a scale, and of K-types an offset; those are integers times the floats
//! of a block of groups. First each group is fitted by itself, with scales on a grid and a
//! regression for each; then the block's floats are chosen so that integers come close to what the
//! groups want; then integers and floats are improved in turn. Errors are always those of what the
//! block unpacks to.
//!
//! Groups are the lanes of vectors, and each adds up its weights in their order: the result has the
//! same bits on every instruction set.

use crate::element::f16;

/// What the integers of a type stand for, and which there are.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    /// The lowest and the highest level of a weight.
    pub(super) levels: [f32; 2],
    /// The levels, if they are not all integers from the lowest to the highest.
    pub(super) table: Option<&'static [i8; 16]>,
    /// The lowest and the highest integer that a block's scale is multiplied by; `None`: each group
    /// has a float of its own.
    pub(super) scales: Option<[f32; 2]>,
    pub(super) offsets: Offsets,
}

/// What is taken off a group's weights.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Offsets {
    /// Nothing.
    None,
    /// A float of the group.
    Own,
    /// An integer up to this times a float of the block.
    Integers(f32),
}

/// `LEN` weights of `LANES` groups.
pub(super) type Lanes<const LANES: usize, const LEN: usize> = [[f32; LANES]; LEN];

/// A fitted block, or, where groups have floats of their own, as many blocks as there are lanes.
pub(super) struct Fitted<const LANES: usize, const LEN: usize> {
    /// Scale and offset of the block, which are f16s.
    pub(super) shared: [f32; 2],
    /// Of each group: integers, or floats of its own, which are f16s.
    pub(super) scales: [f32; LANES],
    pub(super) offsets: [f32; LANES],
    /// What the integers of weights stand for.
    pub(super) levels: Lanes<LANES, LEN>,
}

/// The nearest f16 that is finite.
#[inline(always)]
fn rounded_to_f16(x: f32) -> f32 {
    f16::from_f32(x.clamp(-MAX_F16, MAX_F16)).to_f32()
}

const MAX_F16: f32 = 65_504.0;

#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

impl Grid {
    /// The level nearest to `x`.
    #[inline(always)]
    fn nearest<const TABLE: bool>(&self, x: f32) -> f32 {
        let [lowest, highest] = self.levels;
        if !TABLE {
            return x.round_ties_even().max(lowest).min(highest);
        }
        let table = self.table.expect("a grid with a table");
        let mut level = lowest;
        for pair in table.windows(2) {
            let [lower, upper] = [f32::from(pair[0]), f32::from(pair[1])];
            level = if x > (lower + upper) / 2.0 { upper } else { level };
        }
        level
    }
}

/// Weights, their importance, and what they are fitted to.
struct Fit<'a, const LANES: usize, const LEN: usize, const TABLE: bool> {
    grid: &'a Grid,
    x: &'a Lanes<LANES, LEN>,
    importance: &'a Lanes<LANES, LEN>,
}

/// The number of scales that a symmetric group tries on either side, and their distance.
const SYMMETRIC_STEPS: i32 = 9;
const SYMMETRIC_STEP: f32 = 0.1;
/// The same of a group with an offset: from the widest range on.
const OFFSET_STEPS: i32 = 36;
const OFFSET_STEP: f32 = 0.05;
const OFFSET_START: f32 = -0.9;
/// How often integers and floats are improved in turn, at most.
const SWEEPS: usize = 4;

impl<const LANES: usize, const LEN: usize, const TABLE: bool> Fit<'_, LANES, LEN, TABLE> {
    /// The levels nearest to the weights of each group with this scale and offset.
    #[inline(always)]
    fn levels(&self, scales: &[f32; LANES], offsets: &[f32; LANES]) -> Lanes<LANES, LEN> {
        let inverses = scales.map(inverse);
        let mut levels = [[0.0; LANES]; LEN];
        for (levels, x) in levels.iter_mut().zip(self.x) {
            for lane in 0..LANES {
                let wanted = (x[lane] + offsets[lane]) * inverses[lane];
                levels[lane] = self.grid.nearest::<TABLE>(wanted);
            }
        }
        levels
    }

    /// The error of each group.
    #[inline(always)]
    fn errors(
        &self,
        levels: &Lanes<LANES, LEN>,
        scales: &[f32; LANES],
        offsets: &[f32; LANES],
    ) -> [f32; LANES] {
        let mut errors = [0.0; LANES];
        for ((levels, x), importance) in levels.iter().zip(self.x).zip(self.importance) {
            for lane in 0..LANES {
                let off = x[lane] - (scales[lane] * levels[lane] - offsets[lane]);
                errors[lane] += importance[lane] * off * off;
            }
        }
        errors
    }

    /// Each group by itself, without an offset: the scale with the best regression, and how much an
    /// error of it costs.
    #[inline(always)]
    fn symmetric(&self) -> ([f32; LANES], [f32; LANES]) {
        let mut largest = [0.0f32; LANES];
        for x in self.x {
            for lane in 0..LANES {
                let is_larger = x[lane].abs() > largest[lane].abs();
                largest[lane] = if is_larger { x[lane] } else { largest[lane] };
            }
        }
        let per_largest = largest.map(inverse);
        let step = if TABLE { 1.0 } else { SYMMETRIC_STEP };
        let (mut scales, mut best, mut costs) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        // The largest weight at either end of the levels.
        for end in self.grid.levels {
            for i in -SYMMETRIC_STEPS..=SYMMETRIC_STEPS {
                let at = end + i as f32 * step;
                let inverses = per_largest.map(|per| at * per);
                let (mut products, mut squares) = ([0.0; LANES], [0.0; LANES]);
                for (x, importance) in self.x.iter().zip(self.importance) {
                    for lane in 0..LANES {
                        let level = self.grid.nearest::<TABLE>(x[lane] * inverses[lane]);
                        let weighted = importance[lane] * level;
                        products[lane] += weighted * x[lane];
                        squares[lane] += weighted * level;
                    }
                }
                for lane in 0..LANES {
                    let scale = products[lane] * inverse(squares[lane]);
                    let gain = scale * products[lane];
                    let is_better = gain > best[lane];
                    scales[lane] = if is_better { scale } else { scales[lane] };
                    costs[lane] = if is_better { squares[lane] } else { costs[lane] };
                    best[lane] = if is_better { gain } else { best[lane] };
                }
            }
        }
        (scales, costs)
    }

    /// Each group by itself, with an offset: scale and offset with the best regression, and how
    /// much an error of either costs.
    #[inline(always)]
    fn with_offset(&self) -> [([f32; LANES], [f32; LANES]); 2] {
        let is_free = self.grid.offsets == Offsets::Own;
        let (mut least, mut largest) = (self.x[0], self.x[0]);
        let (mut sums, mut totals) = ([0.0; LANES], [0.0; LANES]);
        for (x, importance) in self.x.iter().zip(self.importance) {
            for lane in 0..LANES {
                least[lane] = least[lane].min(x[lane]);
                largest[lane] = largest[lane].max(x[lane]);
                totals[lane] += importance[lane];
                sums[lane] += importance[lane] * x[lane];
            }
        }
        if !is_free {
            least = least.map(|least| least.min(0.0));
        }
        let highest = self.grid.levels[1];
        let mut per_range = [0.0; LANES];
        for lane in 0..LANES {
            per_range[lane] = inverse(largest[lane] - least[lane]);
        }
        let mut scales = per_range.map(|per| inverse(per) / highest);
        let mut offsets = least.map(|least| -least);
        let levels = self.levels(&scales, &offsets);
        let mut best = self.errors(&levels, &scales, &offsets);
        let mut costs = [0.0; LANES];
        for i in 0..=OFFSET_STEPS {
            let at = OFFSET_START + OFFSET_STEP * i as f32 + highest;
            let (mut of_level, mut squares, mut products) =
                ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
            let mut levels = [[0.0; LANES]; LEN];
            for ((levels, x), importance) in levels.iter_mut().zip(self.x).zip(self.importance) {
                for lane in 0..LANES {
                    let wanted = (x[lane] - least[lane]) * (at * per_range[lane]);
                    let level = self.grid.nearest::<TABLE>(wanted);
                    levels[lane] = level;
                    let weighted = importance[lane] * level;
                    of_level[lane] += weighted;
                    squares[lane] += weighted * level;
                    products[lane] += weighted * x[lane];
                }
            }
            let (mut scale, mut offset) = ([0.0; LANES], [0.0; LANES]);
            for lane in 0..LANES {
                let d = inverse(totals[lane] * squares[lane] - of_level[lane] * of_level[lane]);
                scale[lane] = (totals[lane] * products[lane] - sums[lane] * of_level[lane]) * d;
                offset[lane] = (of_level[lane] * products[lane] - squares[lane] * sums[lane]) * d;
                let is_below = !is_free && offset[lane] < 0.0;
                let alone = products[lane] * inverse(squares[lane]);
                scale[lane] = if is_below { alone } else { scale[lane] };
                offset[lane] = if is_below { 0.0 } else { offset[lane] };
            }
            let errors = self.errors(&levels, &scale, &offset);
            for lane in 0..LANES {
                let is_better = errors[lane] < best[lane];
                scales[lane] = if is_better { scale[lane] } else { scales[lane] };
                offsets[lane] = if is_better { offset[lane] } else { offsets[lane] };
                costs[lane] = if is_better { squares[lane] } else { costs[lane] };
                best[lane] = if is_better { errors[lane] } else { best[lane] };
            }
        }
        for lane in 0..LANES {
            costs[lane] = if costs[lane] == 0.0 { totals[lane] } else { costs[lane] };
        }
        [(scales, costs), (offsets, totals)]
    }

    /// What each group wants: its scale and offset, and how much an error of either costs.
    #[inline(always)]
    fn wanted(&self) -> [([f32; LANES], [f32; LANES]); 2] {
        match self.grid.offsets {
            Offsets::None => [self.symmetric(), ([0.0; LANES], [1.0; LANES])],
            _ => self.with_offset(),
        }
    }

    /// Blocks of one group each.
    #[inline(always)]
    fn own(&self) -> Fitted<LANES, LEN> {
        let [(scales, _), (offsets, _)] = self.wanted();
        let (mut scales, mut offsets) = (scales.map(rounded_to_f16), offsets.map(rounded_to_f16));
        let mut levels = self.levels(&scales, &offsets);
        let mut best = self.errors(&levels, &scales, &offsets);
        for _ in 0..SWEEPS {
            let sums = self.sums(&levels);
            let (mut scale, mut offset) = (scales, offsets);
            for lane in 0..LANES {
                [scale[lane], offset[lane]] = sums.regression(lane, self.grid.offsets);
            }
            let (scale, offset) = (scale.map(rounded_to_f16), offset.map(rounded_to_f16));
            let again = self.levels(&scale, &offset);
            let errors = self.errors(&again, &scale, &offset);
            let mut is_done = true;
            for lane in 0..LANES {
                if errors[lane] < best[lane] {
                    is_done = false;
                    (scales[lane], offsets[lane]) = (scale[lane], offset[lane]);
                    best[lane] = errors[lane];
                    levels.iter_mut().zip(&again).for_each(|(to, from)| to[lane] = from[lane]);
                }
            }
            if is_done {
                break;
            }
        }
        Fitted { shared: [0.0; 2], scales, offsets, levels }
    }

    /// A block whose groups share a scale, and perhaps an offset.
    #[inline(always)]
    fn shared(&self, scale_range: [f32; 2]) -> Fitted<LANES, LEN> {
        let [(wanted, costs), (offsets, offset_costs)] = self.wanted();
        let offset_range = match self.grid.offsets {
            Offsets::Integers(highest) => [0.0, highest],
            _ => [0.0; 2],
        };
        let shared =
            [share(&wanted, &costs, scale_range), share(&offsets, &offset_costs, offset_range)];
        let integers = |wanted: &[f32; LANES], shared: f32, [lowest, highest]: [f32; 2]| {
            let per = inverse(shared);
            wanted.map(|wanted| (wanted * per).round_ties_even().max(lowest).min(highest))
        };
        let mut block = Block {
            shared,
            scales: integers(&wanted, shared[0], scale_range),
            offsets: integers(&offsets, shared[1], offset_range),
        };
        let (mut levels, mut best) = self.coded(&block);
        for _ in 0..SWEEPS {
            let before = total(&best);
            self.improve_integers(
                &mut block,
                (&mut levels, &mut best),
                [scale_range, offset_range],
            );
            let sums = self.sums(&levels);
            let other = Block { shared: sums.shared(&block, self.grid.offsets), ..block };
            let (again, errors) = self.coded(&other);
            if total(&errors) < total(&best) {
                (block, levels, best) = (other, again, errors);
            }
            if total(&best) >= before {
                break;
            }
        }
        Fitted { shared: block.shared, scales: block.scales, offsets: block.offsets, levels }
    }

    /// Levels and errors of a block.
    #[inline(always)]
    fn coded(&self, block: &Block<LANES>) -> (Lanes<LANES, LEN>, [f32; LANES]) {
        let scales = block.scales.map(|scale| block.shared[0] * scale);
        let offsets = block.offsets.map(|offset| block.shared[1] * offset);
        let levels = self.levels(&scales, &offsets);
        let errors = self.errors(&levels, &scales, &offsets);
        (levels, errors)
    }

    /// Takes for each group the best of its integers and their neighbours.
    #[inline(always)]
    fn improve_integers(
        &self,
        block: &mut Block<LANES>,
        (levels, best): (&mut Lanes<LANES, LEN>, &mut [f32; LANES]),
        [scale_range, offset_range]: [[f32; 2]; 2],
    ) {
        const STEPS: [[f32; 2]; 6] =
            [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 1.0], [-1.0, -1.0]];
        let num_steps = if offset_range[1] > 0.0 { STEPS.len() } else { 2 };
        let from = *block;
        let moved =
            |x: f32, by: f32, [lowest, highest]: [f32; 2]| (x + by).max(lowest).min(highest);
        for step in &STEPS[..num_steps] {
            let other = Block {
                shared: from.shared,
                scales: from.scales.map(|scale| moved(scale, step[0], scale_range)),
                offsets: from.offsets.map(|offset| moved(offset, step[1], offset_range)),
            };
            let (again, errors) = self.coded(&other);
            for lane in 0..LANES {
                if errors[lane] < best[lane] {
                    block.scales[lane] = other.scales[lane];
                    block.offsets[lane] = other.offsets[lane];
                    best[lane] = errors[lane];
                    levels.iter_mut().zip(&again).for_each(|(to, from)| to[lane] = from[lane]);
                }
            }
        }
    }

    /// The sums that a regression needs.
    #[inline(always)]
    fn sums(&self, levels: &Lanes<LANES, LEN>) -> Sums<LANES> {
        let mut sums = Sums {
            totals: [0.0; LANES],
            x: [0.0; LANES],
            levels: [0.0; LANES],
            squares: [0.0; LANES],
            products: [0.0; LANES],
        };
        for ((levels, x), importance) in levels.iter().zip(self.x).zip(self.importance) {
            for lane in 0..LANES {
                let weighted = importance[lane] * levels[lane];
                sums.totals[lane] += importance[lane];
                sums.x[lane] += importance[lane] * x[lane];
                sums.levels[lane] += weighted;
                sums.squares[lane] += weighted * levels[lane];
                sums.products[lane] += weighted * x[lane];
            }
        }
        sums
    }
}

/// The floats of a block and the integers of its groups.
#[derive(Clone, Copy)]
struct Block<const LANES: usize> {
    shared: [f32; 2],
    scales: [f32; LANES],
    offsets: [f32; LANES],
}

/// Sums over the weights of each group, times their importance.
struct Sums<const LANES: usize> {
    totals: [f32; LANES],
    x: [f32; LANES],
    levels: [f32; LANES],
    squares: [f32; LANES],
    products: [f32; LANES],
}

impl<const LANES: usize> Sums<LANES> {
    /// Scale and offset of a group.
    #[inline(always)]
    fn regression(&self, lane: usize, offsets: Offsets) -> [f32; 2] {
        let (w, x, l) = (self.totals[lane], self.x[lane], self.levels[lane]);
        let (ll, xl) = (self.squares[lane], self.products[lane]);
        if offsets == Offsets::None {
            return [xl * inverse(ll), 0.0];
        }
        let d = inverse(w * ll - l * l);
        [(w * xl - x * l) * d, (l * xl - ll * x) * d]
    }

    /// Scale and offset of a block whose groups have these integers.
    #[inline(always)]
    fn shared(&self, block: &Block<LANES>, offsets: Offsets) -> [f32; 2] {
        // The weights are `scale · a − offset · b`.
        let (mut aa, mut ab, mut bb, mut xa, mut xb) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
        for lane in 0..LANES {
            let [s, m] = [block.scales[lane], block.offsets[lane]].map(f64::from);
            aa += s * s * f64::from(self.squares[lane]);
            ab += s * m * f64::from(self.levels[lane]);
            bb += m * m * f64::from(self.totals[lane]);
            xa += s * f64::from(self.products[lane]);
            xb += m * f64::from(self.x[lane]);
        }
        let alone = if aa > 0.0 { xa / aa } else { 0.0 };
        let d = aa * bb - ab * ab;
        let [scale, offset] = match offsets {
            Offsets::Integers(_) if d > 0.0 => [(xa * bb - xb * ab) / d, (ab * xa - aa * xb) / d],
            _ => [alone, f64::from(block.shared[1])],
        };
        [scale, offset.max(0.0)].map(|x| rounded_to_f16(x as f32))
    }
}

fn total<const LANES: usize>(errors: &[f32; LANES]) -> f32 {
    errors.iter().sum()
}

/// The float whose products with integers in this range come closest to what groups want, as an
/// f16.
fn share<const LANES: usize>(
    wanted: &[f32; LANES],
    costs: &[f32; LANES],
    [lowest, highest]: [f32; 2],
) -> f32 {
    let larger = |a: f32, &b: &f32| if b.abs() > a.abs() { b } else { a };
    let largest = wanted.iter().fold(0.0, larger);
    if largest == 0.0 || highest == 0.0 {
        return 0.0;
    }
    let (mut shared, mut best) = (largest / highest, 0.0);
    let ends = [highest, lowest].into_iter().filter(|end| *end != 0.0);
    for at in ends.flat_map(|end| (-2..=12).map(move |i| end - end.signum() * 0.25 * i as f32)) {
        if at == 0.0 {
            continue;
        }
        let per = at / largest;
        let (mut products, mut squares) = (0.0, 0.0);
        for (wanted, cost) in wanted.iter().zip(costs) {
            let integer = (wanted * per).round_ties_even().max(lowest).min(highest);
            products += cost * integer * wanted;
            squares += cost * integer * integer;
        }
        let gain = products * products * inverse(squares);
        if gain > best {
            (shared, best) = (products * inverse(squares), gain);
        }
    }
    rounded_to_f16(shared)
}

/// Fits groups to a grid. With integers for scales they are the groups of one block.
#[inline(always)]
pub(super) fn fit<const LANES: usize, const LEN: usize, const TABLE: bool>(
    grid: &Grid,
    x: &Lanes<LANES, LEN>,
    importance: &Lanes<LANES, LEN>,
) -> Fitted<LANES, LEN> {
    let fit = Fit::<LANES, LEN, TABLE> { grid, x, importance };
    match grid.scales {
        Some(range) => fit.shared(range),
        None => fit.own(),
    }
}
