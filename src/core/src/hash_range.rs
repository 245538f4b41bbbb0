//! Ranges of hashes, as Citus divides tables by them.

/// Hashes from one to another, both among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashRange {
    /// The least.
    pub from: i32,
    /// The greatest.
    pub to: i32,
}

impl HashRange {
    /// How many hashes it has.
    pub fn width(self) -> f64 {
        (i64::from(self.to) - i64::from(self.from) + 1) as f64
    }

    /// Both halves; None: it is a single hash.
    pub fn halves(self) -> Option<[Self; 2]> {
        if self.from >= self.to {
            return None;
        }
        let middle = ((i64::from(self.from) + i64::from(self.to)).div_euclid(2)) as i32;
        Some([Self { from: self.from, to: middle }, Self { from: middle + 1, to: self.to }])
    }

    /// One hash of it by itself and what is before and behind, in order. Empty when the hash is not in it.
    pub fn around(self, hash: i32) -> Vec<Self> {
        if hash < self.from || hash > self.to {
            return Vec::new();
        }
        let before = hash.checked_sub(1).map(|to| Self { from: self.from, to });
        let behind = hash.checked_add(1).map(|from| Self { from, to: self.to });
        let all = [before, Some(Self { from: hash, to: hash }), behind];
        all.into_iter().flatten().filter(|part| part.from <= part.to).collect()
    }

    /// Whether parts, in order, are all of it and do not overlap.
    pub fn is_made_of(self, parts: &[Self]) -> bool {
        let ends = parts.first().map(|part| part.from) == Some(self.from)
            && parts.last().map(|part| part.to) == Some(self.to);
        let whole = parts.iter().all(|part| part.from <= part.to);
        let joined =
            parts.windows(2).all(|pair| matches!(pair, [a, b] if a.to.checked_add(1) == Some(b.from)));
        ends && whole && joined
    }
}

/// The part of everything that each part takes along: of the hash that is by itself what is known of it, of all others by their
/// widths.
pub fn shares(parts: &[HashRange], alone: Option<(i32, f64)>) -> Vec<f64> {
    let own = |part: &HashRange| {
        alone
            .filter(|(hash, _)| part.from == *hash && part.to == *hash)
            .map(|(_, share)| share.clamp(0.0, 1.0))
    };
    let taken: f64 = parts.iter().filter_map(own).sum();
    let width: f64 = parts.iter().filter(|part| own(part).is_none()).map(|part| part.width()).sum();
    let rest = (1.0 - taken).max(0.0);
    parts.iter().map(|part| own(part).unwrap_or_else(|| rest * part.width() / width.max(1.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: HashRange = HashRange { from: i32::MIN, to: i32::MAX };

    fn range(from: i32, to: i32) -> HashRange {
        HashRange { from, to }
    }

    #[test]
    fn halves_are_as_wide() {
        assert_eq!(ALL.halves(), Some([range(i32::MIN, -1), range(0, i32::MAX)]));
        assert_eq!(range(5, 6).halves(), Some([range(5, 5), range(6, 6)]));
        assert_eq!(range(-4, -1).halves(), Some([range(-4, -3), range(-2, -1)]));
        assert_eq!(range(7, 7).halves(), None);
    }

    #[test]
    fn a_hash_alone_leaves_the_rest_as_it_is() {
        assert_eq!(range(1, 9).around(5), [range(1, 4), range(5, 5), range(6, 9)]);
        assert_eq!(range(1, 9).around(1), [range(1, 1), range(2, 9)]);
        assert_eq!(range(1, 9).around(9), [range(1, 8), range(9, 9)]);
        assert_eq!(range(3, 3).around(3), [range(3, 3)]);
        assert_eq!(ALL.around(i32::MIN).len(), 2);
        assert_eq!(ALL.around(i32::MAX).len(), 2);
        assert!(range(1, 9).around(10).is_empty());
        for hash in 1..=9 {
            assert!(range(1, 9).is_made_of(&range(1, 9).around(hash)));
        }
    }

    #[test]
    fn parts_that_are_not_all_are_known() {
        assert!(!range(1, 9).is_made_of(&[]));
        assert!(!range(1, 9).is_made_of(&[range(1, 4), range(6, 9)]));
        assert!(!range(1, 9).is_made_of(&[range(1, 5), range(5, 9)]));
        assert!(!range(1, 9).is_made_of(&[range(1, 4), range(5, 8)]));
        assert!(range(1, 9).is_made_of(&[range(1, 9)]));
    }

    #[test]
    fn shares_are_one_together() {
        let parts = range(0, 99).around(10);
        let known = shares(&parts, Some((10, 0.8)));
        assert!((known.iter().sum::<f64>() - 1.0).abs() < 1e-9 && (known[1] - 0.8).abs() < 1e-9);
        let unknown = shares(&parts, None);
        assert!((unknown[1] - 0.01).abs() < 1e-9 && (unknown[0] - 0.1).abs() < 1e-9);
        assert_eq!(shares(&[range(3, 3)], Some((3, 1.0))), [1.0]);
    }
}
