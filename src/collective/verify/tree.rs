//! Trees of additions: [`Tree`] for people, and a store in which equal trees are one number.

use super::super::blocks::{Addition, canonical_additions, rank_order_additions};
use crate::transport::Rank;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// The tree of additions that makes an element.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Tree {
    /// A rank's own element.
    Leaf(Rank),
    /// The left operand ⊕ the right one.
    Sum(Arc<Tree>, Arc<Tree>),
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operand = |tree: &Tree, f: &mut fmt::Formatter<'_>| match tree {
            Tree::Leaf(rank) => write!(f, "{rank}"),
            Tree::Sum(..) => write!(f, "({tree})"),
        };
        match self {
            Tree::Leaf(rank) => write!(f, "{rank}"),
            Tree::Sum(left, right) => {
                operand(left, f)?;
                f.write_str("+")?;
                operand(right, f)
            }
        }
    }
}

/// The canonical tree T(n): the ranks are cut into power-of-two blocks after the binary digits of n, each block is
/// summed pairwise, and the blocks' sums are added from the smallest: `B₁ ⊕ (B₂ ⊕ (…))`.
///
/// # Panics
/// If `n` is 0.
///
/// ```
/// use esync::collective::verify::canonical_tree;
/// assert_eq!(canonical_tree(7).to_string(), "((0+1)+(2+3))+((4+5)+6)");
/// ```
pub fn canonical_tree(n: usize) -> Tree {
    tree_of(n, &canonical_additions(n))
}

/// The sum from left to right by rank.
///
/// # Panics
/// If `n` is 0.
///
/// ```
/// use esync::collective::verify::rank_order_tree;
/// assert_eq!(rank_order_tree(4).to_string(), "((0+1)+2)+3");
/// ```
pub fn rank_order_tree(n: usize) -> Tree {
    tree_of(n, &rank_order_additions(n))
}

fn tree_of(n: usize, additions: &[Addition]) -> Tree {
    assert!(n > 0, "there is no sum over no ranks");
    let mut forest = Forest::new(n);
    let sum = forest.sum_of(additions);
    forest.tree(sum)
}

/// The number of a tree in a [`Forest`]; the first n are the leaves.
pub(super) type TreeId = u32;

/// All trees that were made so far, each once.
#[derive(Debug, Clone)]
pub(super) struct Forest {
    leaves: usize,
    /// The operands of tree `leaves + i`.
    sums: Vec<(TreeId, TreeId)>,
    ids: HashMap<(TreeId, TreeId), TreeId>,
    /// Which leaves each tree has, as bits in `words` words.
    sets: Vec<u64>,
    words: usize,
}

impl Forest {
    pub(super) fn new(leaves: usize) -> Self {
        let words = leaves.div_ceil(64).max(1);
        let mut sets = vec![0; leaves * words];
        for leaf in 0..leaves {
            sets[leaf * words + leaf / 64] = 1 << (leaf % 64);
        }
        Forest { leaves, sums: Vec::new(), ids: HashMap::new(), sets, words }
    }

    fn set(&self, tree: TreeId) -> &[u64] {
        &self.sets[tree as usize * self.words..][..self.words]
    }

    /// The sum of two trees, or a leaf that both have.
    pub(super) fn add(&mut self, left: TreeId, right: TreeId) -> Result<TreeId, Rank> {
        if let Some(&id) = self.ids.get(&(left, right)) {
            return Ok(id);
        }
        let pairs = self.set(left).iter().zip(self.set(right));
        if let Some((word, common)) = pairs.map(|(l, r)| l & r).enumerate().find(|(_, common)| *common != 0) {
            return Err(word * 64 + common.trailing_zeros() as usize);
        }
        let id = (self.leaves + self.sums.len()) as TreeId;
        for word in 0..self.words {
            self.sets.push(self.set(left)[word] | self.set(right)[word]);
        }
        self.sums.push((left, right));
        self.ids.insert((left, right), id);
        Ok(id)
    }

    /// The leaves that a tree lacks.
    pub(super) fn missing(&self, tree: TreeId) -> Vec<Rank> {
        let set = self.set(tree);
        (0..self.leaves).filter(|leaf| set[leaf / 64] >> (leaf % 64) & 1 == 0).collect()
    }

    /// The last of `additions` over all leaves.
    pub(super) fn sum_of(&mut self, additions: &[Addition]) -> TreeId {
        let mut sums: Vec<TreeId> = (0..self.leaves as TreeId).collect();
        for addition in additions {
            let (left, right) = (addition.left.start, addition.right.start);
            // The groups of an addition are disjoint, so it always has a sum.
            if let Ok(sum) = self.add(sums[left], sums[right]) {
                sums[left] = sum;
            }
        }
        sums.first().copied().unwrap_or_default()
    }

    pub(super) fn canonical(&mut self) -> TreeId {
        self.sum_of(&canonical_additions(self.leaves))
    }

    pub(super) fn rank_order(&mut self) -> TreeId {
        self.sum_of(&rank_order_additions(self.leaves))
    }

    /// A tree by itself. Shared parts stay shared, and no recursion is as deep as the tree.
    pub(super) fn tree(&self, id: TreeId) -> Tree {
        let mut made: HashMap<TreeId, Arc<Tree>> = HashMap::new();
        let mut open = vec![id];
        while let Some(&next) = open.last() {
            let tree = match (next as usize).checked_sub(self.leaves) {
                None => Tree::Leaf(next as usize),
                Some(sum) => {
                    let (left, right) = self.sums[sum];
                    match (made.get(&left), made.get(&right)) {
                        (Some(left), Some(right)) => Tree::Sum(left.clone(), right.clone()),
                        _ => {
                            open.extend([right, left]);
                            continue;
                        }
                    }
                }
            };
            open.pop();
            made.insert(next, Arc::new(tree));
        }
        made.get(&id).map_or(Tree::Leaf(0), |tree| Tree::clone(tree))
    }
}
