// SPDX-License-Identifier: Apache-2.0
//
// ScatterReader: pages from the socket into guest memory without a copy of ours, by guessing.
//
// A full machine's stream is monotonous: after page n of a block comes page n + 1 of that block, each with a header of
// 8 bytes. So one read is laid out as if that were certain,
//
//     [8 bytes: header] [4096 -> page n + 1] [8] [4096 -> page n + 2] ...
//
// and the headers are compared afterwards. Those that are as guessed are done. From the first that is not, the bytes
// are put together again and given back to the BufferedReader, to be decoded as always: they may be anything, to the
// next section and the devices.
//
// A wrong guess has overwritten pages with others' bytes. Therefore guesses go only where PageStore::pages_to_guess()
// allows it: into pages not received yet, whose bytes nobody wants. The read takes what has arrived and waits for
// nothing but the next byte, which must come: a body ends with a record. It may end anywhere, in a header too.
//
// Guessing wrong costs one more copy of what was read. Wrong guesses in a row make it pause, twice as long each time.
// Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "protocol/stream/layout.hpp"
#include "ram/page_store.hpp"
#include "ram/ram_map.hpp"
#include "transports/buffered.hpp"

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace migrationd::ram {

class ScatterReader {
 public:
  // All of them outlive it.
  ScatterReader(transports::BufferedReader& reader, RamMap& map, PageStore& store);

  // Takes pages from `page` of the block on, as long as they come one after the other and the store lets it guess.
  // What the reader has buffered is less than one record and its start. Returns how many were placed; what follows
  // them is in the reader, or still to be read.
  Result<std::size_t> take(std::size_t block, std::uint64_t page);

 private:
  static constexpr std::size_t most_pages = 128;  // 512 KiB, two pieces each
  static constexpr std::size_t least_pages = 16;  // a read for less costs more than the copy it saves
  static constexpr std::size_t longest_pause = 64;

  std::size_t room_at(std::uint64_t page) const;
  bool take_buffered();
  Result<bool> read_some(std::size_t room);
  std::size_t count_right(std::size_t bytes) const noexcept;
  void give_back(std::size_t from, std::size_t bytes);
  Result<void> complete_page();
  void commit(std::size_t pages);
  void note_guess(bool right) noexcept;
  std::byte* memory(std::size_t record) const noexcept;
  std::uint64_t guessed_header(std::size_t record) const noexcept;

  struct Header {
    std::byte bytes[stream::ram_word_bytes];
  };

  transports::BufferedReader& reader_;
  RamMap& map_;
  PageStore& store_;
  std::size_t most_;  // pages per read: what is given back must fit the reader's buffer
  std::vector<Header> headers_;
  std::vector<iovec> pieces_;

  std::size_t block_ = 0;
  std::uint64_t page_ = 0;   // the record at hand is guessed to be this page
  std::size_t partial_ = 0;  // bytes of that record taken already, header first
  std::size_t taken_ = 0;    // pages placed by this call

  std::size_t pause_ = 0;       // calls to let pass
  std::size_t next_pause_ = 1;  // after the next wrong guess
};

}  // namespace migrationd::ram
