// SPDX-License-Identifier: Apache-2.0
//
// The end of a precopy stream: FULL sections without length, EOF, description. docs/formats/stream.md,
// "Finding the end", tells how; the essay on the algorithm is in device_tail.cpp.
//
// A DeviceTail owns every byte from behind the footer of END ram (or, for a background snapshot, of the last PART)
// and says when the stream is complete:
//
//     feed(bytes)   after each read. complete: no byte is missing
//     closed()      the connection, or the file, has ended: complete or an error
//     quiet()       nothing came for limits::end_quiet_time: complete when a chain of sections says so
//     take()        once, after complete
//
// With a return path: stop reading at complete, load, send SHUT. Without one: read on to the end of the
// connection, feed what comes (bytes behind an end take `complete` back) and ask closed().
//
// Work is linear in the bytes fed, whatever they are; memory is bounded by limits::device_state_bytes +
// limits::description_bytes. One thread.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/decoded.hpp"
#include "protocol/stream/footer_scan.hpp"
#include "protocol/stream/sections.hpp"
#include "protocol/stream/vmdescription.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::stream {

enum class TailProgress : std::uint8_t { need_more, complete };

// What proved the borders of the sections.
enum class TailProof : std::uint8_t {
  description,  // the walk of the description accounts for every byte
  names,        // the description's list of sections matches a chain of headers and footers (its sizes do not)
  footers,      // a chain of headers and footers alone: best effort (no description, or a dummy)
};

struct DeviceTailContents {
  std::vector<DeviceSection> sections;     // in stream order, early ones first
  std::optional<std::string> description;  // verbatim; nothing when the stream came without one
  TailProof proof = TailProof::description;
};

class DeviceTail {
 public:
  // `early`: the FULL sections that came between START ram and the first PART, in order.
  explicit DeviceTail(std::uint32_t ram_section_id, std::vector<DeviceSection> early = {});

  Result<TailProgress> feed(ByteView bytes);
  Result<TailProgress> closed();
  Result<TailProgress> quiet();
  DeviceTailContents take() &&;

  std::size_t size() const noexcept { return buffer_.size(); }

 private:
  // A place where EOF and a description's header may lie.
  struct Candidate {
    std::size_t eof = 0;      // offset of the 00 byte
    std::size_t end = 0;      // offset behind the text
    std::size_t checked = 0;  // the text holds no zero byte before this offset
  };
  // The end that was proved; offsets into buffer_.
  struct Found {
    std::vector<SectionSpan> sections;
    std::optional<std::string> description;
    TailProof proof = TailProof::description;
  };

  TailProgress progress() const noexcept { return found_ ? TailProgress::complete : TailProgress::need_more; }
  Result<void> check_start();
  void find_candidates();
  void note_candidate(std::size_t eof);
  bool text_goes_on(Candidate& candidate) const noexcept;
  Result<void> settle_candidates();
  Result<void> try_candidate(const Candidate& candidate);
  Result<void> try_description(const Candidate& candidate, const VmDescription& description);
  Result<void> check_ids(const std::vector<SectionSpan>& sections) const;
  Result<void> try_names(const Candidate& candidate, const VmDescription& description);
  enum class Globalstate : std::uint8_t { preferred, required };
  Result<void> try_footers(std::size_t eof, std::optional<std::string> description, Globalstate globalstate);
  Result<std::vector<SectionSpan>> scan(std::size_t eof, const std::vector<ExpectedSection>* expected,
                                        std::string_view required_name = {});
  void reject(std::string reason) { rejected_ = std::move(reason); }
  ByteView sections_before(std::size_t eof) const noexcept { return ByteView(buffer_).subspan(start_, eof - start_); }

  std::uint32_t ram_section_id_;
  std::vector<DeviceSection> early_;
  Bytes buffer_;
  bool started_ = false;      // the first element's type was looked at
  std::size_t start_ = 0;     // of the first FULL section, behind a SWITCHOVER_START
  std::size_t searched_ = 0;  // candidates before this offset are known
  std::vector<Candidate> candidates_;
  std::optional<Found> found_;
  std::string rejected_;      // why the latest candidate is not the end; for errors
  std::size_t stuck_at_ = 0;  // buffer size at which a whole description was rejected
  WalkBudget walk_;
  ScanBudget scan_;
};

}  // namespace migrationd::stream
