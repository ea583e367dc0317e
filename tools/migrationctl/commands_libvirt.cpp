// SPDX-License-Identifier: Apache-2.0
//
// save --libvirt: a save image as libvirt writes one. The header comes first, marked as not whole; the daemon writes
// the stream behind it; when that is on the disk the mark is changed. Whoever dies in between leaves an image that
// libvirt and migrationd call incomplete.
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/file_access.hpp"

#include <fmt/format.h>

namespace migrationd::ctl {

Result<LibvirtImage> LibvirtImage::begin(QmpClient& client, const FileOptions& options) {
  LibvirtImage out;
  out.path_ = options.path;
  MD_TRY(std::string xml, read_text(options.libvirt_xml, stream::save_image_data_max));
  // Editors end a file with a line feed; libvirt's own text has none behind its last element's.
  while (!xml.empty() && xml.back() == '\0') xml.pop_back();
  MD_TRY(const Json status, client.execute("query-status"));
  stream::NewSaveImage image;
  image.xml = xml;
  image.format = options.image_format == "sparse" ? stream::SaveImageFormat::sparse : stream::SaveImageFormat::raw;
  image.was_running = status.value("running", false);
  MD_TRY(out.header_, stream::plan_save_image(image));
  MD_TRY(out.fd_, create_for_writing(options.path));
  ByteWriter bytes;
  stream::SaveImageHeader unfinished = out.header_;
  unfinished.complete = false;
  stream::encode_save_image(bytes, unfinished, image);
  MD_CHECK(write_at(out.fd_.get(), 0, bytes.view()));
  MD_CHECK(make_durable(out.fd_.get(), options.path));
  return out;
}

Result<void> LibvirtImage::finish() {
  // What the daemon wrote is on the disk; it synced before it said completed.
  ByteWriter bytes;
  stream::encode_save_image_header(bytes, header_);
  MD_CHECK(write_at(fd_.get(), 0, bytes.view()));
  return make_durable(fd_.get(), path_);
}

}  // namespace migrationd::ctl
