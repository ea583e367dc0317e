// SPDX-License-Identifier: Apache-2.0
#include "guest/examples/cache/store.hpp"

#include <cstring>

namespace cache {

namespace {

constexpr std::uint64_t magic = 0x6d64636163686531;  // "mdcache1"
constexpr std::uint64_t smallest_entry = 32;
constexpr unsigned size_classes = 16;

std::uint64_t hash_of(std::string_view key) {
  std::uint64_t value = 0xcbf29ce484222325U;  // FNV-1a
  for (const char c : key) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return value;
}

}  // namespace

struct Store::Header {
  std::uint64_t magic;
  std::uint64_t bytes;
  std::uint64_t slots;               // a power of two
  std::uint64_t used;                // keys
  std::uint64_t erased;              // slots that were, and stop no search
  std::uint64_t arena;               // first byte never used
  std::uint64_t free[size_classes];  // first free entry of each class; 0: none
};

struct Store::Slot {
  std::uint64_t hash;
  std::uint64_t entry;  // offset; 0: never used, 1: erased
};

struct Store::Entry {
  std::uint32_t key_bytes;
  std::uint32_t value_bytes;
  std::uint32_t size_class;
  std::uint32_t unused;
  // key and value follow; in a free entry, the offset of the next one

  std::byte* data() { return reinterpret_cast<std::byte*>(this + 1); }
  std::string_view key() { return {reinterpret_cast<char*>(data()), key_bytes}; }
};

Store::Header& Store::header() const { return *static_cast<Header*>(static_cast<void*>(memory_)); }
Store::Slot& Store::slot(std::uint64_t index) const {
  return static_cast<Slot*>(static_cast<void*>(memory_ + sizeof(Header)))[index];
}
Store::Entry& Store::entry(std::uint64_t offset) const {
  return *static_cast<Entry*>(static_cast<void*>(memory_ + offset));
}

bool Store::open(std::byte* memory, std::uint64_t bytes) {
  memory_ = memory;
  bytes_ = bytes;
  if (bytes < (1U << 20)) return false;
  Header& head = header();
  if (head.magic == magic) return head.bytes == bytes;
  if (head.magic != 0) return false;
  head.bytes = bytes;
  head.slots = 1024;
  while (head.slots * 2 * sizeof(Slot) <= bytes / 8) head.slots *= 2;
  head.arena = (sizeof(Header) + head.slots * sizeof(Slot) + smallest_entry - 1) / smallest_entry * smallest_entry;
  head.magic = magic;
  return true;
}

Store::Slot* Store::find(std::string_view key, std::uint64_t hash, bool for_insert) const {
  const std::uint64_t mask = header().slots - 1;
  Slot* erased = nullptr;
  for (std::uint64_t step = 0; step <= mask; ++step) {
    Slot& here = slot((hash + step) & mask);
    if (here.entry == 0) return for_insert ? (erased != nullptr ? erased : &here) : nullptr;
    if (here.entry == 1) {
      if (erased == nullptr) erased = &here;
    } else if (here.hash == hash && entry(here.entry).key() == key) {
      return &here;
    }
  }
  return for_insert ? erased : nullptr;
}

std::uint64_t Store::allocate(unsigned size_class) {
  Header& head = header();
  std::uint64_t offset = head.free[size_class];
  if (offset != 0) {
    std::memcpy(&head.free[size_class], entry(offset).data(), sizeof offset);
  } else {
    const std::uint64_t length = smallest_entry << size_class;
    if (length > bytes_ - head.arena) return 0;
    offset = head.arena;
    head.arena += length;
  }
  entry(offset).size_class = size_class;
  return offset;
}

void Store::release(std::uint64_t offset) {
  Header& head = header();
  Entry& gone = entry(offset);
  std::memcpy(gone.data(), &head.free[gone.size_class], sizeof offset);
  head.free[gone.size_class] = offset;
}

bool Store::set(std::string_view key, std::string_view value) {
  if (key.empty() || key.size() > most_key_bytes || value.size() > most_value_bytes) return false;
  Header& head = header();
  if ((head.used + head.erased + 1) * 4 > head.slots * 3 && !rebuild()) return false;
  unsigned size_class = 0;
  while ((smallest_entry << size_class) < sizeof(Entry) + key.size() + value.size()) ++size_class;
  const std::uint64_t hash = hash_of(key);
  Slot* const place = find(key, hash, true);
  if (place == nullptr) return false;
  const bool is_new = place->entry <= 1;
  std::uint64_t offset = is_new ? 0 : place->entry;
  if (is_new || entry(offset).size_class != size_class) {
    offset = allocate(size_class);
    if (offset == 0) return false;
    if (!is_new) release(place->entry);
  }
  Entry& out = entry(offset);
  out.key_bytes = static_cast<std::uint32_t>(key.size());
  out.value_bytes = static_cast<std::uint32_t>(value.size());
  std::memcpy(out.data(), key.data(), key.size());
  std::memcpy(out.data() + key.size(), value.data(), value.size());
  if (place->entry == 1) --head.erased;
  if (is_new) ++head.used;
  *place = {hash, offset};
  return true;
}

std::optional<std::string> Store::get(std::string_view key) const {
  const Slot* const place = find(key, hash_of(key), false);
  if (place == nullptr) return std::nullopt;
  Entry& found = entry(place->entry);
  return std::string(reinterpret_cast<char*>(found.data()) + found.key_bytes, found.value_bytes);
}

bool Store::erase(std::string_view key) {
  Slot* const place = find(key, hash_of(key), false);
  if (place == nullptr) return false;
  release(place->entry);
  place->entry = 1;
  --header().used;
  ++header().erased;
  return true;
}

// Erased slots are made free again. There are no more slots than at the start, so it can fail.
bool Store::rebuild() {
  Header& head = header();
  if ((head.used + 1) * 4 > head.slots * 3) return false;
  // In place: every key is taken out and put where a search without erased slots looks first. Done when a round moves
  // nothing; each round moves keys towards their place only.
  for (std::uint64_t i = 0; i < head.slots; ++i) {
    if (slot(i).entry == 1) slot(i).entry = 0;
  }
  head.erased = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (std::uint64_t i = 0; i < head.slots; ++i) {
      if (slot(i).entry == 0) continue;
      const Slot taken = slot(i);
      slot(i).entry = 0;
      Slot* const place = find(entry(taken.entry).key(), taken.hash, true);
      moved = moved || place != &slot(i);
      *place = taken;
    }
  }
  return true;
}

std::uint64_t Store::size() const { return header().used; }

}  // namespace cache
