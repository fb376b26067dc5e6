//! Boxes side by side in huge pages.
//!
//! What a packet needs behind a pointer, taken from the allocator, lies in a page of its own as a rule, whose
//! place the processor has forgotten since the last packet. Here a thousand lie in one page.
#![expect(unsafe_code, reason = "places for values, taken and given back")]

use std::alloc::Layout;
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::region::{HUGE_BYTES, Region};

thread_local! {
    static RACKS: RefCell<Vec<Rack>> = const { RefCell::new(Vec::new()) };
}

/// A thread's places for values of one layout. Their memory is never given back, only used again.
struct Rack {
    layout: Layout,
    free: Vec<NonNull<u8>>,
}

impl Rack {
    /// The thread's places of this layout.
    fn of(racks: &mut Vec<Self>, layout: Layout) -> &mut Self {
        let known = racks.iter().position(|rack| rack.layout == layout);
        let at = known.unwrap_or_else(|| {
            racks.push(Self { layout, free: Vec::new() });
            racks.len() - 1
        });
        &mut racks[at]
    }

    /// A place that is nobody else's.
    fn take(&mut self) -> NonNull<u8> {
        if self.free.is_empty() {
            let page = ManuallyDrop::new(Region::new(HUGE_BYTES));
            let places = HUGE_BYTES / self.layout.size();
            // The first one last: it is the next to be taken.
            self.free.extend((0..places).rev().map(|place| page.at(place * self.layout.size())));
        }
        self.free.pop().expect("a value is far smaller than a huge page")
    }
}

/// A `Box` for what each packet needs. It stays with its thread.
pub struct HugeBox<T>(NonNull<T>);

impl<T> HugeBox<T> {
    const LAYOUT: Layout = Layout::new::<T>();
    const FITS: () = assert!(size_of::<T>() > 0 && size_of::<T>() <= HUGE_BYTES / 16);

    /// Puts `value` into a huge page of this thread's.
    pub fn new(value: T) -> Self {
        let () = Self::FITS;
        let place = RACKS.with_borrow_mut(|racks| Rack::of(racks, Self::LAYOUT).take()).cast::<T>();
        // SAFETY: the place has the layout of `T` (a size is a multiple of its alignment, and the page is
        // aligned to more), and is nobody else's until it is given back.
        unsafe { place.write(value) };
        Self(place)
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        let place = ManuallyDrop::new(self).0;
        // SAFETY: written in `new`; the box is not dropped, so this is the value's only owner.
        let value = unsafe { place.read() };
        Self::give_back(place);
        value
    }

    /// The value is gone.
    fn give_back(place: NonNull<T>) {
        // It is this thread's, for a box is not `Send`; at the thread's very end nobody needs it.
        let give =
            |racks: &RefCell<_>| Rack::of(&mut racks.borrow_mut(), Self::LAYOUT).free.push(place.cast());
        let _ = RACKS.try_with(give);
    }
}

impl<T> Deref for HugeBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: written in `new`, and ours until it is dropped.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for HugeBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; the box is borrowed exclusively.
        unsafe { self.0.as_mut() }
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for HugeBox<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Drop for HugeBox<T> {
    fn drop(&mut self) {
        // SAFETY: written in `new`, dropped once, here.
        unsafe { self.0.drop_in_place() };
        Self::give_back(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    /// Goal: values lie side by side in one huge page, apart from each other, and a place is used again.
    /// Method: a hundred; one is dropped, another one takes its place.
    #[test]
    fn boxes_share_a_huge_page_and_places_are_used_again() {
        let mut boxes: Vec<HugeBox<[u64; 150]>> = (0..100).map(|n| HugeBox::new([n; 150])).collect();
        for (n, value) in boxes.iter().enumerate() {
            assert_eq!(**value, [n as u64; 150]);
            assert_eq!(value.0.addr().get() / HUGE_BYTES, boxes[0].0.addr().get() / HUGE_BYTES);
        }
        let place = boxes.remove(50).0;
        let again = HugeBox::new([7_u64; 150]);
        assert_eq!(again.0, place);
        boxes[50][0] = 9;
        assert_eq!((again[0], boxes[50][1]), (7, 51));
    }

    /// Goal: what is in a box is dropped with it, once, whatever shares its layout.
    /// Method: two types of one layout, counted references.
    #[test]
    fn values_are_dropped_with_their_boxes() {
        let count = Rc::new(());
        let one = HugeBox::new((Rc::clone(&count), 1_u64));
        let other = HugeBox::new((2_u64, Rc::clone(&count)));
        assert_eq!(Rc::strong_count(&count), 3);
        drop(one);
        assert_eq!(Rc::strong_count(&count), 2);
        let (two, kept) = other.into_inner();
        assert_eq!((two, Rc::strong_count(&count)), (2, 2));
        drop(kept);
        assert_eq!(Rc::strong_count(&count), 1);
    }
}
