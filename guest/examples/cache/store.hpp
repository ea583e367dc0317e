// SPDX-License-Identifier: Apache-2.0
//
// Store: a table of keys and values that lives in one piece of memory, all of it: the header, the slots, the entries
// and the lists of what is free. It holds offsets and no pointers, so that it may be found at another address after it
// moved.
//
//     | header | slots: open addressing, linear probing | arena: entries, and free ones of 32 << n bytes |
//
// Thread: one at a time; who moves the memory stops that one first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace cache {

inline constexpr std::size_t most_key_bytes = 250;
inline constexpr std::size_t most_value_bytes = 32 << 10;

class Store {
 public:
  // `memory` holds `bytes` zeros (then a store is made in it) or a store. False: neither, or too small.
  bool open(std::byte* memory, std::uint64_t bytes);

  // False: no room. Keys and values within the bounds above.
  bool set(std::string_view key, std::string_view value);
  std::optional<std::string> get(std::string_view key) const;
  bool erase(std::string_view key);
  std::uint64_t size() const;

 private:
  struct Header;
  struct Slot;
  struct Entry;

  Header& header() const;
  Slot& slot(std::uint64_t index) const;
  Entry& entry(std::uint64_t offset) const;
  // The slot of `key`, or the free one it belongs to.
  Slot* find(std::string_view key, std::uint64_t hash, bool for_insert) const;
  std::uint64_t allocate(unsigned size_class);
  void release(std::uint64_t offset);
  bool rebuild();

  std::byte* memory_ = nullptr;
  std::uint64_t bytes_ = 0;
};

}  // namespace cache
