// SPDX-License-Identifier: Apache-2.0
//
// verify: is the file whole, and is it still what it was? The first by going through all of it as a destination does,
// the second by the checksums beside it, if there are some.
#include "tools/migrationctl/checksums.hpp"
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/file_access.hpp"
#include "tools/migrationctl/image_walk.hpp"

#include <fmt/format.h>

namespace migrationd::ctl {

namespace {

struct Verdict {
  std::optional<std::string> structure;  // what is wrong with it
  std::optional<SumsReport> sums;        // nothing: there are none
  std::optional<std::string> sums_problem;
  bool good() const { return !structure && !sums_problem && (!sums || sums->wrong == 0); }
};

void print_json(const OpenedImage& file, const Verdict& verdict) {
  Json out{{"file", file.path},
           {"kind", stream::to_name(file.image.kind)},
           {"good", verdict.good()},
           {"complete", !verdict.structure}};
  if (verdict.structure) out["problem"] = *verdict.structure;
  if (verdict.sums) {
    out["checksums"] = {{"compared", verdict.sums->chunks}, {"wrong", verdict.sums->wrong}};
    if (verdict.sums->first_wrong) out["checksums"]["first-wrong-offset"] = *verdict.sums->first_wrong;
  }
  if (verdict.sums_problem) out["checksums"] = {{"problem", *verdict.sums_problem}};
  fmt::print("{}\n", out.dump(2));
}

void print_text(const OpenedImage& file, const Verdict& verdict) {
  fmt::print("{}: {}\n", file.path, stream::to_name(file.image.kind));
  fmt::print("  structure  {}\n", verdict.structure ? fmt::format("bad: {}", *verdict.structure) : "good, complete");
  if (verdict.sums_problem) {
    fmt::print("  checksums  bad: {}\n", *verdict.sums_problem);
  } else if (!verdict.sums) {
    fmt::print("  checksums  none beside the file (save --checksum stores them)\n");
  } else if (verdict.sums->wrong == 0) {
    fmt::print("  checksums  good, {} compared\n", verdict.sums->chunks);
  } else {
    fmt::print("  checksums  bad: {} of {} differ, the first at {}\n", verdict.sums->wrong, verdict.sums->chunks,
               hex(*verdict.sums->first_wrong));
  }
}

}  // namespace

Result<int> verify(const Output& output, const std::string& path) {
  MD_TRY(const auto stop, StopSource::make());
  MD_TRY(const OpenedImage file, open_image(path));
  Verdict verdict;
  ImageVisitor nothing;
  WalkedImage walked;
  auto structure = walk_image(file, nothing, *stop, walked);
  if (!structure && structure.error().kind() == ErrorKind::plan) return std::move(structure).error();
  if (!structure) verdict.structure = structure.error().text();
  auto sums = check_sums(path);
  if (sums) {
    verdict.sums = *sums;
  } else {
    verdict.sums_problem = sums.error().text();
  }
  output.json ? print_json(file, verdict) : print_text(file, verdict);
  return verdict.good() ? exit_done : exit_refused;
}

}  // namespace migrationd::ctl
