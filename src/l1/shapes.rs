//! The shapes of a space's objects: one for each rank and group, the same for every process that uses this L1.
//!
//! The first pool that declares a shape defines it, until the cache is closed. Before that, the first object that a backend
//! gives does so for the others of its rank and group; such a shape gives way to that of a pool, and its objects go with it. So
//! all objects of a rank and group that carry a shape tag have one shape in L1, and objects do not carry it themselves.

use hashbrown::{HashMap, HashSet};

use crate::error::{Error, KVKEEP_ERR_LIMIT, Result};
use crate::shape::{Shape, ShapeTag};

/// Most shapes that are remembered.
const SHAPES_MAX: usize = 1 << 16;

/// Index of the space, rank, group.
pub(super) type ShapeName = (u32, u32, u32);

enum KnownShape {
    /// A pool declared it.
    Declared(Shape),
    /// An object that a backend gave has it.
    Met(ShapeTag),
}

impl KnownShape {
    fn tag(&self) -> ShapeTag {
        match self {
            KnownShape::Declared(shape) => shape.tag,
            KnownShape::Met(tag) => *tag,
        }
    }
}

/// The known shapes of all spaces.
#[derive(Default)]
pub(super) struct Shapes(HashMap<ShapeName, KnownShape>);

fn contradiction(known: &Shape, shape: &Shape) -> Error {
    let how = if known.to_string() == shape.to_string() {
        format!("{known}, of other layers or parts, or in another order")
    } else {
        format!("{known} there, {shape} here")
    };
    Error::invalid(format!(
        "objects of rank {}, group {} would look different from those of an earlier pool of the same space ({how}): say so in the \
         layout of kvkeep_space_options, so that it is another space",
        shape.rank, shape.group
    ))
}

impl Shapes {
    /// Forgets the shapes of a space.
    pub fn forget(&mut self, space: u32) {
        self.0.retain(|(of, ..), _| *of != space);
    }

    /// Declares the shapes that a pool has in a space. Refuses all of them if one contradicts an earlier pool. Gives the ranks and
    /// groups whose shape was that of a loaded object and is replaced: the caller detaches their objects.
    pub fn declare(&mut self, space: u32, shapes: &[Shape]) -> Result<HashSet<(u32, u32)>> {
        let mut new = 0;
        for shape in shapes {
            match self.0.get(&(space, shape.rank, shape.group)) {
                Some(KnownShape::Declared(known)) if known.tag != shape.tag => return Err(contradiction(known, shape)),
                Some(_) => {}
                None => new += 1,
            }
        }
        let known = self.0.len();
        if known + new > SHAPES_MAX {
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!(
                    "the layouts of {known} ranks and groups of spaces are remembered, and {SHAPES_MAX} may be: open pools of the \
                     same ones, or open the cache anew"
                ),
            ));
        }
        let mut replaced = HashSet::new();
        for shape in shapes {
            let former = self.0.insert((space, shape.rank, shape.group), KnownShape::Declared(*shape));
            if former.is_some_and(|former| former.tag() != shape.tag) {
                replaced.insert((shape.rank, shape.group));
            }
        }
        Ok(replaced)
    }

    /// Whether an object that a backend gave may be committed: it has the shape of the others of its rank and group, or none
    /// that is known, or is the first to have one.
    pub fn admits(&mut self, name: ShapeName, tag: ShapeTag) -> bool {
        if tag == ShapeTag::UNKNOWN {
            return true;
        }
        if let Some(known) = self.0.get(&name) {
            return known.tag() == tag;
        }
        let fits = self.0.len() < SHAPES_MAX;
        if fits {
            self.0.insert(name, KnownShape::Met(tag));
        }
        fits
    }

    /// Whether no shape is known of any space.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The shape of the objects of a space, rank and group.
    pub fn tag_of(&self, name: ShapeName) -> ShapeTag {
        self.0.get(&name).map_or(ShapeTag::UNKNOWN, KnownShape::tag)
    }
}
